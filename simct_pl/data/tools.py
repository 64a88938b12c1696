"""What a row says of tools: those that a model may call, and the calls in its messages; checked, in one form.

In: a field's value, as JSON or as structures, in OpenAI's format or the flat one. Out: JSON schemas of functions, and
calls whose arguments are an object, as chat templates expect both.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from simct_pl.errors import PromptDataError, first_line
from simct_pl.types import Message, Tool

FUNCTION = "function"
FIX_TOOLS = "Correct tools_field (or tools), or convert or leave out such rows."
FIX_CALLS = "Convert or leave out such rows."


def read_tools(place: str, value: Any) -> tuple[Tool, ...]:
    """The tools of a row or of a source; none for an empty list.

    value: a list of {"type": "function", "function": {"name": …}} or of the inner objects alone, or that as JSON.
    place: what errors call it.

    Raises:
        PromptDataError: for anything else, and for two tools of one name.
    """
    tools = _parsed(place, value, FIX_TOOLS) if isinstance(value, str) else value
    if not isinstance(tools, list | tuple) or not all(isinstance(tool, Mapping) for tool in tools):
        raise PromptDataError(
            f"{place} is {value!r:.80}; expected a list of JSON schemas of functions, or one as JSON. {FIX_TOOLS}"
        )
    found = tuple(_tool(place, tool) for tool in tools)
    names = [tool[FUNCTION]["name"] for tool in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise PromptDataError(f"{place} has two tools of the name {twice[0]!r}; expected one. {FIX_TOOLS}")
    return found


def read_tool_calls(place: str, value: Any) -> list[dict[str, Any]]:
    """An assistant's calls as {"type": "function", "function": {"name", "arguments"}}, with an id where it has one.

    value: a list of such, whose arguments are an object or one as JSON (OpenAI's way), or of the inner objects; or
    that as JSON.

    Raises:
        PromptDataError: for anything else.
    """
    calls = _parsed(place, value, FIX_CALLS) if isinstance(value, str) else value
    if not isinstance(calls, list) or not all(isinstance(call, Mapping) for call in calls):
        raise PromptDataError(f"{place}: tool_calls are {value!r:.80}; expected a list of calls. {FIX_CALLS}")
    return [_call(place, call) for call in calls]


def unfilled(value: Any) -> Any:
    """Without the names whose value is null, at any depth: tables give every row the names that any row has."""
    if isinstance(value, Mapping):
        return {name: unfilled(inner) for name, inner in value.items() if inner is not None}
    return [unfilled(inner) for inner in value] if isinstance(value, list) else value


def tools_as_json(tools: Sequence[Tool]) -> str:
    """Tools as one column of a table holds them; an empty list says that there are none."""
    return json.dumps(list(tools), ensure_ascii=False)


def as_stored(messages: Sequence[Message]) -> list[Message]:
    """Messages as a table holds them: the arguments of calls are JSON, as no two functions take the same ones."""
    return [
        {**message, "tool_calls": [_stored_call(call) for call in message["tool_calls"]]}
        if message.get("tool_calls")
        else message
        for message in messages
    ]


def uses_tools(messages: Sequence[Message], tools: Sequence[Tool]) -> bool:
    """Whether there is more to be said than roles and contents."""
    return bool(tools) or any(message.keys() - {"role", "content"} for message in messages)


def said_in(message: Message) -> str:
    """All that a message says: its content, and what it calls."""
    calls = [call[FUNCTION] for call in message.get("tool_calls") or ()]
    return "\n".join([message["content"], *(json.dumps(call, ensure_ascii=False) for call in calls)])


def _stored_call(call: Mapping[str, Any]) -> dict[str, Any]:
    arguments = json.dumps(call[FUNCTION]["arguments"], ensure_ascii=False)
    return {**call, FUNCTION: {**call[FUNCTION], "arguments": arguments}}


def _named(place: str, what: str, given: Mapping[str, Any], field: str, fix: str) -> Mapping[str, Any]:
    """The function that a tool or a call is about, nested or flat; it must have a name."""
    inner = given.get(FUNCTION, given)
    name = inner.get("name") if isinstance(inner, Mapping) else None
    if not isinstance(inner, Mapping) or not isinstance(name, str) or not name:
        raise PromptDataError(
            f'{place} has a {what} without a name ({dict(given)!r:.80}); expected {{"type": "function", "function": '
            f'{{"name": …, "{field}": …}}}}. {fix}'
        )
    return inner


def _tool(place: str, tool: Mapping[str, Any]) -> Tool:
    if tool.get("type", FUNCTION) != FUNCTION and FUNCTION not in tool and "parameters" not in tool:
        raise PromptDataError(f"{place} has a tool of the type {tool['type']!r:.40}; expected a function. {FIX_TOOLS}")
    inner = _named(place, "tool", tool, "parameters", FIX_TOOLS)
    return dict(tool) if FUNCTION in tool else {"type": FUNCTION, FUNCTION: dict(inner)}


def _call(place: str, call: Mapping[str, Any]) -> dict[str, Any]:
    inner = _named(place, "tool call", call, "arguments", FIX_CALLS)
    name = inner["name"]
    given = inner.get("arguments")
    arguments = {} if given in (None, "") else given
    if isinstance(arguments, str):
        arguments = _parsed(f"{place}: the arguments of {name!r}", arguments, FIX_CALLS)
    if not isinstance(arguments, Mapping):
        raise PromptDataError(
            f"{place} has a call of {name!r} with the arguments {given!r:.80}; expected an object, or one as JSON. "
            f"{FIX_CALLS}"
        )
    numbered = {} if call.get("id") is None else {"id": str(call["id"])}
    return {**numbered, "type": FUNCTION, FUNCTION: {"name": name, "arguments": dict(arguments)}}


def _parsed(place: str, text: str, fix: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PromptDataError(f"{place} is {text!r:.80}, which is no JSON: {first_line(error)}. {fix}") from error
