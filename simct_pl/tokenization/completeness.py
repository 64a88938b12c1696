"""Whether a chat template has written all that it was given; a part that it skips without a word is refused.

In: a rendered prompt, what it was rendered from, and the rendering itself. What no words tell (whether tools are in
there, or arguments) is found by rendering once more without it: a template that takes it writes another text then.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from simct_pl.errors import TokenizerError
from simct_pl.types import Message, Tool

Render = Callable[[Sequence[Message], Sequence[Tool]], str]
# Roles whose words a template may not leave out; it may shorten an assistant's (its thinking) or rewrite a tool's.
ASKING = ("system", "developer", "user")
MARK = "Result 5183."  # words no template contains
CHANGE = "or give the model a chat template that takes them (chat_template.jinja in its folder)."


def check_complete(render: Render, text: str, messages: Sequence[Message], tools: Sequence[Tool], name: str) -> None:
    """Refuse a rendered prompt that lacks a part.

    Args:
        render: messages and tools → text. text: of these messages and tools. name: how errors call the tokenizer.

    Raises:
        TokenizerError: naming what is left out, with the fix.
    """
    for message in messages:
        # A template that knows no system role may as well skip such a message.
        if message["role"] in ASKING and not says(text, message["content"]):
            raise TokenizerError(
                f"The chat template of {name} leaves out the {message['role']} message {message['content']!r:.60}. Put "
                "its text into another message (drop the system prompt), or change the model's chat template."
            )
    if tools:
        _check_tools(render, text, messages, tools, name)
    if any(message.get("tool_calls") for message in messages):
        _check_calls(render, text, messages, tools, name)
    _check_results(render, text, messages, tools, name)


def _check_tools(render: Render, text: str, messages: Sequence[Message], tools: Sequence[Tool], name: str) -> None:
    fix = f"Leave tools_field and tools out if the model is to answer without them, {CHANGE}"
    bare = _rendered(render, messages, ())
    if bare == text:
        raise TokenizerError(
            f"The chat template of {name} leaves out the tools: it writes the same prompt without them. {fix}"
        )
    for tool in tools:
        # Counted, as a message may name a tool as well.
        called = tool["function"]["name"]
        if text.count(called) <= (bare or "").count(called):
            raise TokenizerError(f"The chat template of {name} leaves out the tool {called!r}. {fix}")


def _check_calls(render: Render, text: str, messages: Sequence[Message], tools: Sequence[Tool], name: str) -> None:
    """Each call's name and arguments, and what is said beside it."""
    bare = _rendered(render, [_without_calls(message) for message in messages], tools)
    calls = [call["function"] for message in messages for call in message.get("tool_calls") or ()]
    for called, num in Counter(call["name"] for call in calls).items():
        # Counted, as tools have the names as well. What refuses to do without the calls reads them.
        found = num if bare is None else text.count(called) - bare.count(called)
        if found < num:
            raise TokenizerError(
                f"The chat template of {name} leaves out tool_calls: {called!r} is called {num} times, and in the "
                f"prompt it is {max(found, 0)}. Leave such rows out, {CHANGE}"
            )
    has_arguments = any(call["arguments"] for call in calls)
    if has_arguments and _rendered(render, [_without_arguments(message) for message in messages], tools) == text:
        raise TokenizerError(
            f"The chat template of {name} leaves out the arguments of tool_calls. Leave such rows out, {CHANGE}"
        )
    for message in messages:
        if message.get("tool_calls") and not says(text, message["content"].rpartition("</think>")[2]):
            raise TokenizerError(
                f"The chat template of {name} leaves out what an assistant says beside its tool_calls, "
                f"{message['content']!r:.60}. Leave such rows or these words out, {CHANGE}"
            )


def _check_results(render: Render, text: str, messages: Sequence[Message], tools: Sequence[Tool], name: str) -> None:
    """A result may be written anew (quoted as JSON, say), but not be left out."""
    for place, message in enumerate(messages):
        content = message["content"]
        if message["role"] != "tool" or says(text, content) or json.dumps(content, ensure_ascii=False)[1:-1] in text:
            continue
        marked = [*messages[:place], {**message, "content": MARK}, *messages[place + 1 :]]
        if MARK not in (_rendered(render, marked, tools) or ""):
            raise TokenizerError(
                f"The chat template of {name} leaves out the result of a tool (role tool), {content!r:.60}. Leave such "
                f"rows out, {CHANGE}"
            )


def says(text: str, content: str) -> bool:
    """Templates may lay out white space anew."""
    return content.strip() in text or "".join(content.split()) in "".join(text.split())


def _rendered(render: Render, messages: Sequence[Message], tools: Sequence[Tool]) -> str | None:
    """None if the template refuses it: then it has read what was taken away."""
    try:
        return render(messages, tools)
    except TokenizerError:
        return None


def _without_calls(message: Message) -> Message:
    return {key: value for key, value in message.items() if key != "tool_calls"}


def _without_arguments(message: Message) -> Message:
    calls = message.get("tool_calls")
    return {**message, "tool_calls": [_bare_call(call) for call in calls]} if calls else message


def _bare_call(call: dict[str, Any]) -> dict[str, Any]:
    return {**call, "function": {**call["function"], "arguments": {}}}
