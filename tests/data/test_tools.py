"""Rows with tools: conversations in which assistants call them, in all the ways in which data sets write that."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from simct_pl.data.messages import read_messages
from simct_pl.data.prompts import PromptStream
from simct_pl.data.source import PromptSource
from simct_pl.data.tools import as_stored, read_tool_calls, read_tools, tools_as_json
from simct_pl.errors import PromptDataError, RecipeError
from simct_pl.types import Prompt

CONVERSATIONS = Path(__file__).parents[1] / "assets/tool_conversations.jsonl"
FIELDS: dict[str, Any] = {"prompt_field": "messages", "tools_field": "tools"}
ADD = {"type": "function", "function": {"name": "add", "parameters": {"properties": {"a": {"default": None}}}}}


def prompts(path: Path, **fields: Any) -> list[Prompt]:
    source = PromptSource(str(path), **{**FIELDS, **fields})
    return [source.prompt(index, row) for index, row in source.rows()]


def jsonl(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def call(name: str, **arguments: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def test_conversations_as_data_sets_have_them() -> None:
    first, second, third, fourth = prompts(CONVERSATIONS)
    assert [message["role"] for message in first.messages] == ["system", "user", "assistant", "tool"]
    assert first.messages[2] == {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": "a1", **call("get_weather", city="Paris")}],
    }
    assert first.messages[3] == {
        "role": "tool",
        "content": '{"degrees": 21}',
        "tool_call_id": "a1",
        "name": "get_weather",
    }
    assert (first.response, first.reply) == ("21 degrees, the sun is out.", None)
    assert [tool["function"]["name"] for tool in first.tools] == ["get_weather"]

    assert second.messages[-1]["role"] == "tool", "the student answers the result of a tool"
    assert second.messages[1]["tool_calls"] == [call("multiply", a=12, b=3), call("get_weather", city="Łódź")]
    assert (second.response, second.reply) == (None, None)
    assert second.tools[0]["function"]["parameters"]["properties"]["a"] == {"type": "number", "default": None}

    assert third.messages[-1] == {"role": "user", "content": "What is 12*12?"}, "an answer is never shown to a model"
    assert third.response is None
    assert third.reply == {"role": "assistant", "content": "", "tool_calls": [call("multiply", a=12, b=12)]}
    assert third.conversation == (*third.messages, third.reply)
    assert (fourth.response, fourth.tools) == ("the 123 🙂", ())
    assert fourth.conversation[-1] == {"role": "assistant", "content": "the 123 🙂"}


def test_tables_give_the_same_prompts(tmp_path: Path) -> None:
    """Their rows have all the names that any of them has: arguments, properties and keys that nobody wrote."""
    rows = [json.loads(line) for line in CONVERSATIONS.read_text(encoding="utf-8").splitlines()]
    for row in rows:
        tools = row["tools"]
        row["tools"] = [
            tool if "function" in tool else {"type": "function", "function": tool}
            for tool in (json.loads(tools) if isinstance(tools, str) else tools)
        ]
        for message in row["messages"]:
            for one in message.get("tool_calls", []):
                one.setdefault("function", {"name": one.pop("name", None), "arguments": one.pop("arguments", None)})
                if isinstance(one["function"]["arguments"], str):
                    one["function"]["arguments"] = json.loads(one["function"]["arguments"])
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    (filled, *_) = pq.read_table(tmp_path / "a.parquet").to_pylist()
    assert filled["messages"][2]["tool_calls"][0]["function"]["arguments"] == {"a": None, "b": None, "city": "Paris"}
    read, expected = prompts(tmp_path / "a.parquet"), prompts(CONVERSATIONS)
    assert [prompt.conversation for prompt in read] == [prompt.conversation for prompt in expected]
    assert read[0].tools == expected[0].tools
    assert read[2].tools == expected[2].tools


def test_what_is_written_into_a_table_comes_out_again() -> None:
    for prompt in prompts(CONVERSATIONS):
        stored = as_stored(prompt.messages)
        schema = pa.Table.from_pylist([{"messages": stored, "tools": tools_as_json(prompt.tools)}])
        (row,) = schema.to_pylist()
        assert tuple(read_messages("Row 0", row["messages"])) == prompt.messages
        assert read_tools("Row 0", row["tools"]) == prompt.tools


@pytest.mark.parametrize("empty", [{}, {"tools": None}, {"tools": ""}], ids=["no field", "null", "empty"])
def test_a_row_without_tools_is_refused_or_counted(tmp_path: Path, empty: dict[str, Any]) -> None:
    path = jsonl(
        tmp_path / "a.jsonl", {"prompt": "u", "tools": [ADD]}, {"prompt": "v", **empty}, {"prompt": "w", **empty}
    )
    with pytest.raises(PromptDataError, match=r"Row 1 .* has no 'tools'; .*tools_required to false"):
        prompts(path, prompt_field="prompt")
    stream = PromptStream(PromptSource(str(path), tools_field="tools", tools_required=False))
    for _ in range(2):  # passes
        with pytest.warns(UserWarning, match=r"row 1 has no 'tools'") if stream.epoch == 0 else nullcontext():
            assert [len(prompt.tools) for prompt in stream] == [1, 0, 0]
        assert stream.num_without_tools == 2
    # The source's own are for these rows.
    given = {"type": "function", "function": {"name": "given"}}
    found = prompts(path, prompt_field="prompt", tools=[given])
    assert [prompt.tools for prompt in found] == [(ADD,), (given,), (given,)]


@pytest.mark.parametrize("tools", [[ADD], [ADD["function"]], json.dumps([ADD])], ids=["whole", "flat", "JSON"])
def test_tools_that_the_recipe_gives_are_every_rows(tmp_path: Path, tools: Any) -> None:
    path = jsonl(tmp_path / "a.jsonl", {"prompt": "u", "tools": "unread"})
    (prompt,) = prompts(path, prompt_field="prompt", tools_field=None, tools=tools)
    assert prompt.tools == (ADD,)
    (plain,) = prompts(path, prompt_field="prompt", tools_field=None)
    assert plain.tools == ()


@pytest.mark.parametrize(
    ("tools", "match"),
    [
        (3, "is 3; expected a list of JSON schemas"),
        ({"name": "add"}, "expected a list of JSON schemas"),
        (["add"], "expected a list of JSON schemas"),
        ("[{", "which is no JSON"),
        ("add", "which is no JSON"),
        ([{"type": "function"}], "a tool without a name"),
        ([{"type": "function", "function": {"description": "x"}}], "a tool without a name"),
        ([{"type": "web_search"}], "a tool of the type 'web_search'; expected a function"),
        ([ADD, {"name": "add"}], "two tools of the name 'add'"),
    ],
)
def test_what_is_no_list_of_tools_is_refused(tmp_path: Path, tools: Any, match: str) -> None:
    with pytest.raises(PromptDataError, match=f"Row 0.*{match}"):
        read_tools("Row 0", tools)
    path = jsonl(tmp_path / "a.jsonl", {"prompt": "u", "tools": tools})
    with pytest.raises(PromptDataError, match=f"Row 0 of .*'tools'.*{match}.*Correct tools_field"):
        prompts(path, prompt_field="prompt")
    if not isinstance(tools, int):
        with pytest.raises(RecipeError, match=f"tools of .*{match}"):
            PromptSource(str(path), tools=tools)


@pytest.mark.parametrize(
    ("calls", "match"),
    [
        (3, "tool_calls are 3; expected a list"),
        ({"name": "add"}, "expected a list of calls"),
        (["add"], "expected a list of calls"),
        ("[", "no JSON"),
        ([{"function": {"arguments": {}}}], "a tool call without a name"),
        ([{"name": "add", "arguments": "{"}], "the arguments of 'add' is '{', which is no JSON"),
        ([{"name": "add", "arguments": [1, 2]}], r"call of 'add' with the arguments \[1, 2\]; expected an object"),
        ([{"name": "add", "arguments": "3"}], "expected an object"),
    ],
)
def test_what_is_no_call_is_refused(calls: Any, match: str) -> None:
    value = [{"role": "user", "content": "x"}, {"role": "assistant", "content": None, "tool_calls": calls}]
    with pytest.raises(PromptDataError, match=f"Row 0.*{match}"):
        read_messages("Row 0", value)


def test_calls_without_arguments_and_as_json() -> None:
    assert read_tool_calls("Row 0", [{"name": "now"}, {"name": "now", "arguments": ""}]) == [call("now"), call("now")]
    assert read_tool_calls("Row 0", json.dumps([call("add", a=1)])) == [call("add", a=1)]


@pytest.mark.parametrize(
    ("message", "match"),
    [
        ({"role": "user", "content": "x", "tool_calls": [call("add")]}, "tool_calls in a message of the role 'user'"),
        ({"role": "assistant", "content": None, "tool_calls": []}, "without 'content'"),
        ({"role": "assistant", "content": "x", "function_call": {"name": "add"}}, "'function_call', which is not read"),
        ({"role": "assistant", "content": "x", "reasoning_content": "hm"}, "'reasoning_content', which is not read"),
        ({"role": "assistant", "content": "", "tool_calls": [call("add", a="\ud800")]}, "half a character"),
    ],
)
def test_what_a_message_may_not_hold(message: dict[str, Any], match: str) -> None:
    with pytest.raises(PromptDataError, match=f"Row 0.*{match}"):
        read_messages("Row 0", [{"role": "user", "content": "x"}, message])


def test_the_length_of_a_prompt_is_that_of_tools_and_calls_too(tmp_path: Path) -> None:
    chat = [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": "", "tool_calls": [call("add", a="long")]},
    ]
    chat += [{"role": "tool", "content": "y"}]
    path = jsonl(tmp_path / "a.jsonl", {"messages": chat, "tools": []}, {"messages": chat[:1], "tools": [ADD]})
    stream = PromptStream(PromptSource(str(path), **FIELDS, max_prompt_chars=40))
    assert list(stream) == []
    assert stream.num_too_long == 2
    assert len(list(PromptStream(PromptSource(str(path), **FIELDS, max_prompt_chars=200)))) == 2


def test_both_models_system_prompts_keep_the_tools() -> None:
    source = PromptSource(str(CONVERSATIONS), **FIELDS)
    prompt = next(iter(PromptStream(source, system_prompt="both", teacher_system_prompt="teacher")))
    assert [tool["function"]["name"] for tool in prompt.for_teacher.tools] == ["get_weather"]
    assert prompt.for_teacher.messages[0]["content"] == "teacher\n\nBe brief."
    assert prompt.messages[0]["content"] == "both\n\nBe brief."


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_a_shuffled_stream_gives_the_same_prompts(tmp_path: Path, name: str) -> None:
    """Its rows pass through the data set's library, which likes them to be of one type."""
    if name == "a.jsonl":
        path = CONVERSATIONS
    else:
        path = tmp_path / name
        rows = [
            {"messages": as_stored(p.conversation), "tools": tools_as_json(p.tools)} for p in prompts(CONVERSATIONS)
        ]
        pq.write_table(pa.Table.from_pylist(rows), path)
    source = PromptSource(str(path), **FIELDS)
    found = {prompt.index: prompt for prompt in PromptStream(source, shuffle_buffer=3, seed=1)}
    for expected in prompts(CONVERSATIONS):
        again = found[expected.index]
        assert (again.messages, again.response, again.reply) == (expected.messages, expected.response, expected.reply)
        assert again.tools == expected.tools


def test_calls_of_tools_that_no_recipe_names_are_told() -> None:
    with pytest.warns(UserWarning, match=r"row 0 calls tools, and the recipe names none\. Set tools_field"):
        list(PromptStream(PromptSource(str(CONVERSATIONS), prompt_field="messages")))
