"""What a row may hold as a conversation, and what is refused by its name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from simct_pl.data.messages import read_messages
from simct_pl.data.source import PromptSource
from simct_pl.errors import PromptDataError
from simct_pl.types import Prompt


def prompts(path: Path, *values: Any, **fields: str) -> list[Prompt]:
    """The prompts of a file whose rows have these values for `chat`."""
    rows = [{"chat": value, "text": "reference"} for value in values]
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = PromptSource(str(path), prompt_field="chat", **fields)
    return [source.prompt(index, row) for index, row in source.rows()]


def parts(*texts: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text} for text in texts]


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_contents_in_parts_are_put_together(tmp_path: Path, name: str) -> None:
    value = [{"role": "system", "content": parts("Be brief.")}, {"role": "user", "content": parts("1+2", "?", " 🙂")}]
    (prompt,) = prompts(tmp_path / name, value)
    assert prompt.messages == (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "1+2? 🙂"},
    )


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_sharegpt_turns_are_read_and_the_answer_at_the_end_is_the_reference(tmp_path: Path, name: str) -> None:
    turns = [("system", "Be brief."), ("human", "1+2?"), ("gpt", "3"), ("human", "And 4?"), ("gpt", "7")]
    value = [{"from": role, "value": text} for role, text in turns]
    asked, again = prompts(tmp_path / name, value, value[:2])
    assert [tuple(message.values()) for message in asked.messages] == [
        ("system", "Be brief."),
        ("user", "1+2?"),
        ("assistant", "3"),
        ("user", "And 4?"),
    ]
    assert asked.response == "7"
    assert (len(again.messages), again.response) == (2, None)
    (named,) = prompts(tmp_path / name, value, response_field="text")
    assert (len(named.messages), named.response) == (4, "reference")


def test_an_answer_at_the_end_is_never_shown_to_a_model(tmp_path: Path) -> None:
    value = [{"role": "user", "content": "1+2?"}, {"role": "assistant", "content": parts("3")}]
    (prompt,) = prompts(tmp_path / "a.jsonl", value)
    assert (prompt.messages, prompt.response) == (({"role": "user", "content": "1+2?"},), "3")


def test_keys_that_a_table_filled_up_do_not_count() -> None:
    value = [{"role": "user", "content": "x", "from": None, "value": None, "name": None}]
    assert read_messages("Row 0", value) == [{"role": "user", "content": "x"}]
    value = [{"role": None, "content": None, "from": "human", "value": "x", "weight": 1.0}]
    assert read_messages("Row 0", value) == [{"role": "user", "content": "x"}]


@pytest.mark.parametrize(
    ("value", "match"),
    [
        (3, "is 3; expected a text, or a list of messages"),
        ([], "expected a text, or a list of messages"),
        (["x"], "expected a text, or a list of messages"),
        ([{"content": "x"}], "without 'role'"),
        ([{"role": "user"}], "without 'content'"),
        ([{"role": "user", "content": None, "tool_calls": []}], "without 'content'"),
        ([{"from": "human"}], "without 'value'"),
        ([{"role": "human", "content": "x"}], "role 'human'; expected one of assistant, .*user"),
        ([{"role": "User", "content": "x"}], "role 'User'"),
        ([{"role": 1, "content": "x"}], "role 1"),
        ([{"from": "bard", "value": "x"}], "role 'bard'; expected one of .*gpt, human"),
        ([{"role": "user", "content": "x"}, {"from": "gpt", "value": "y"}], "mixes"),
        ([{"role": "user", "content": {"text": "x"}}], "expected a text, or a list of text parts"),
        ([{"role": "user", "content": [*parts("x"), {"type": "image_url"}]}], "type 'image_url'; only"),
        ([{"role": "user", "content": [{"type": "text"}]}], "has the part"),
        ([{"role": "user", "content": ["x"]}], "has the part 'x'"),
        ([{"role": "user", "content": " \n"}], "says nothing"),
        ([{"role": "user", "content": []}], "says nothing"),
        ([{"role": "user", "content": "a\ud800b"}], "half a character .* at 1"),
        ("\udfff", "half a character .* at 0"),
    ],
)  # fmt: skip
def test_what_is_no_conversation_of_texts_is_refused(value: Any, match: str) -> None:
    with pytest.raises(PromptDataError, match=f"Row 0.*{match}"):
        read_messages("Row 0", value)


def test_an_answer_alone_asks_nothing(tmp_path: Path) -> None:
    with pytest.raises(PromptDataError, match="answer alone"):
        prompts(tmp_path / "a.jsonl", [{"from": "gpt", "value": "3"}])


@pytest.mark.parametrize("field", ["response_field", "answer_field"])
def test_half_characters_are_named_wherever_they_are_used(tmp_path: Path, field: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "x", "other": "ok \\ud83d ok"}\n')
    [(index, row)] = PromptSource(str(path)).rows()
    assert PromptSource(str(path)).prompt(index, row).messages[0]["content"] == "x"  # nothing reads the other field
    with pytest.raises(PromptDataError, match=r"Row 0 of .*'other': the text has half a character"):
        PromptSource(str(path), **{field: "other"}).prompt(index, row)  # type: ignore[arg-type]
