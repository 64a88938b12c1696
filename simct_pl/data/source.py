"""PromptSource: where prompts come from, which fields hold what; a row in, a Prompt out.

Only JSON, CSV and Parquet are read: formats that hold data and no code. Files on disk go by local_rows.py, data sets on
the hub by the `datasets` library; messages.py reads conversations.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from datasets import IterableDataset, load_dataset, load_dataset_builder

from simct_pl.data.local_rows import local_rows, naming
from simct_pl.data.messages import CALLS, check_text, read_messages, split_answer
from simct_pl.data.tools import read_tools, said_in, tools_as_json, unfilled
from simct_pl.errors import MissingFileError, PromptDataError, RecipeError
from simct_pl.files.fingerprint import FileFingerprint
from simct_pl.tokenization.chat import with_shown_messages
from simct_pl.types import Message, Prompt, Tool

BUILDERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
WHICH_FIELD = "Set prompt_field (response_field, answer_field) to the right name."
COMPRESSIONS = {".gz", ".zst", ".xz", ".bz2"}


@dataclass(frozen=True)
class PromptSource:
    """Where prompts come from and which fields hold what.

    path: a .jsonl, .json, .csv or .parquet file (also compressed), or a hub name. name, split: of a hub data set.
    prompt_field: a text, a list of {"role", "content"} messages (an assistant's may have tool_calls), or one of
        ShareGPT's {"from", "value"} turns.
    response_field: a reference response, for bits per byte and supervised fine-tuning; by default the assistant's
        answer that a conversation ends with, if it does.
    answer_field: what the grader compares with; a list or a structure becomes JSON. answer_pattern: a regular
        expression whose first group is the answer inside it.
    teacher_field: what the teacher alone is shown beside its system prompt (a reference, a hint): a text, which joins
        its system prompt, or messages, which come before the prompt's. teacher_required: rows without it are refused;
        false: the teacher reads them as the student does, and they are counted and reported.
    tools_field: the tools of a row, a list of JSON schemas or one as JSON; both models' chat templates get them.
        tools_required: rows without it are refused (an empty list says that there are none); false: they have no tools,
        and are counted and reported. tools: the same for rows without a field of their own.
    teacher_name_field: which of several teachers grades a row's answers, by its name in model.init_args.teachers; each
        row has to say. Without the field all of them grade every answer.
    skip, limit: rows left out at the beginning, and at most so many taken after them.
    max_prompt_chars: longer prompts are left out, counted and reported.

    Raises:
        RecipeError: for a negative skip, a limit below 1, an answer_pattern without a group, or tools that are none.
    """

    path: str
    name: str | None = None
    split: str = "train"
    prompt_field: str = "prompt"
    response_field: str | None = None
    answer_field: str | None = None
    answer_pattern: str | None = None
    teacher_field: str | None = None
    teacher_required: bool = True
    tools_field: str | None = None
    tools_required: bool = True
    tools: list[dict[str, Any]] | str | None = None
    teacher_name_field: str | None = None
    skip: int = 0
    limit: int | None = None
    max_prompt_chars: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", os.path.expanduser(self.path))  # frozen, and a shell leaves --key=~/x alone
        for name, least in (("skip", 0), ("limit", 1), ("max_prompt_chars", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise RecipeError(f"{name} of {self.path!r} is {value}; expected at least {least}.")
        try:
            self.given_tools()
        except PromptDataError as error:
            raise RecipeError(str(error)) from error
        if self.answer_pattern is None:
            return
        try:
            num_groups = re.compile(self.answer_pattern).groups
        except re.error as error:
            raise RecipeError(f"answer_pattern {self.answer_pattern!r} is no regular expression: {error}.") from error
        if num_groups < 1:
            raise RecipeError(f"answer_pattern {self.answer_pattern!r} has no group; put the answer in parentheses.")

    def open(self) -> IterableDataset:
        """The rows, streamed.

        Raises:
            MissingFileError, PromptDataError: if the path cannot be opened as a data set, or holds no row.
        """
        builder, looks_local = _builder(self.path)
        if looks_local:
            self._check_file(builder)
            rows: IterableDataset = IterableDataset.from_generator(local_rows, gen_kwargs={"path": self.path})
            return rows
        with naming(self.path, "Expected a .jsonl, .json, .csv or .parquet file, or a hub name."):
            if builder is not None:  # an address
                return load_dataset(builder, data_files=self.path, split="train", streaming=True)
            return self._from_the_hub()

    def _check_file(self, builder: str | None) -> None:
        if not Path(self.path).is_file():
            raise MissingFileError(f"Prompt file {self.path!r} does not exist.")
        if builder is None:
            raise PromptDataError(f"Prompt file {self.path!r} is no .jsonl, .json, .csv or .parquet file.")
        if Path(self.path).stat().st_size == 0:
            raise PromptDataError(f"Prompt file {self.path!r} is empty; expected at least one row.")

    def rows(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """The rows with their index, streamed in order; skip and limit are heeded.

        Raises:
            MissingFileError, PromptDataError: if the path cannot be opened, or the reader finds it broken.
        """
        end = None if self.limit is None else self.skip + self.limit
        with self.reading():
            yield from islice(enumerate(self.open()), self.skip, end)

    def reading(self) -> AbstractContextManager[None]:
        """What the reader finds broken becomes an error (PromptDataError) that names where the rows are."""
        return naming(self.path)

    def _from_the_hub(self) -> IterableDataset:
        """Formats that can hold pickles (WebDataset, say) are refused before a row is read."""
        # The builder only names the format, by its module; its scripts are never run (`datasets` has none since 4.0).
        hub = load_dataset_builder(self.path, self.name)
        kind = type(hub).__module__.rpartition(".")[2]
        if kind not in BUILDERS.values():
            raise PromptDataError(f"Data set {self.path!r} is stored as {kind}; only json, csv and parquet are read.")
        return hub.as_streaming_dataset(split=self.split)

    @property
    def is_local(self) -> bool:
        """Whether the prompts are in a file, not on the hub."""
        return _builder(self.path)[1]

    def sha256(self) -> str | None:
        """Of a local file, 64 hexadecimal digits; None for a hub name."""
        return FileFingerprint.of(self.path).sha256 if self.is_local else None

    def is_too_long(self, prompt: Prompt) -> bool:
        """Whether a prompt, tools and calls of them included, is to be left out by max_prompt_chars."""
        if self.max_prompt_chars is None:
            return False
        num_chars = sum(len(said_in(message)) for message in prompt.messages)
        return num_chars + (len(tools_as_json(prompt.tools)) if prompt.tools else 0) > self.max_prompt_chars

    def prompt(self, index: int, row: Mapping[str, Any]) -> Prompt:
        """One row as a Prompt.

        Raises:
            PromptDataError: naming the row, if a field is missing, empty or of the wrong type.
        """
        # What is asked, and the answer that the conversation itself ends with.
        place = f"Row {index} of {self.path!r}"
        value = self._structure(self._field(index, row, self.prompt_field))
        messages, last = split_answer(read_messages(f"{place}: {self.prompt_field!r}", value))
        if not messages:
            raise PromptDataError(f"{place}: {self.prompt_field!r} is an assistant's answer alone; what is it asked?")
        # A response that has a field of its own counts, not the conversation's.
        response = None if last is None or CALLS in last else last["content"]
        reply = last if last is not None and CALLS in last else None
        if self.response_field:
            response, reply = self._field(index, row, self.response_field), None
            if not isinstance(response, str):
                raise PromptDataError(f"{place}: {self.response_field!r} is {response!r:.80}; expected a text.")
            check_text(f"{place}: {self.response_field!r}", response)
        shown = self._teacher_messages(index, row, messages)
        tools, teacher = self._tools(index, row), self._teacher_name(index, row)
        answer = self._answer(index, row)
        return Prompt(index, tuple(messages), response, answer, shown, tools=tools, reply=reply, teacher=teacher)

    def given_tools(self) -> tuple[Tool, ...]:
        """The source's own tools, for rows without a field of theirs."""
        return () if self.tools is None else read_tools(f"tools of {self.path!r}", self.tools)

    def lacks_tools(self, row: Mapping[str, Any]) -> bool:
        """Whether a row says nothing of its tools, where a field of it should."""
        return self.tools_field is not None and self.tools is None and _is_empty(row.get(self.tools_field))

    def _answer(self, index: int, row: Mapping[str, Any]) -> str | None:
        """What a grader compares with: the field, or what the pattern cuts out of it (`#### 42`)."""
        if not self.answer_field:
            return None
        place = f"Row {index} of {self.path!r}"
        answer = _as_text(f"{place}: {self.answer_field!r}", self._field(index, row, self.answer_field))
        if self.answer_pattern:
            match = re.search(self.answer_pattern, answer)
            if match is None:
                raise PromptDataError(f"{place}: answer_pattern {self.answer_pattern!r} is not in {answer!r:.80}.")
            answer = match.group(1)
        if answer is not None:
            check_text(f"{place}: {self.answer_field!r}", answer)
        return answer

    def _tools(self, index: int, row: Mapping[str, Any]) -> tuple[Tool, ...]:
        """A row's own tools, or the source's."""
        if self.tools_field is None or _is_empty(row.get(self.tools_field)):
            if self.lacks_tools(row) and self.tools_required:
                fix = "Set tools_field to the right name, or tools_required to false: such rows then have no tools."
                self._field(index, row, self.tools_field or "", fix)  # refuses
            return self.given_tools()
        place = f"Row {index} of {self.path!r}: {self.tools_field!r}"
        tools = read_tools(place, self._structure(row[self.tools_field]))
        check_text(place, tools_as_json(tools))
        return tools

    def _teacher_name(self, index: int, row: Mapping[str, Any]) -> str | None:
        """Who grades the row's answers; None for all teachers."""
        if self.teacher_name_field is None:
            return None
        fix = "Set teacher_name_field to the right name, or leave it out: all teachers then grade every answer."
        name = self._field(index, row, self.teacher_name_field, fix)
        if not isinstance(name, str):
            place = f"Row {index} of {self.path!r}: {self.teacher_name_field!r}"
            raise PromptDataError(f"{place} is {name!r:.80}; expected a teacher's name.")
        return name

    def _structure(self, value: Any) -> Any:
        """A field's value as it was written: tables fill up what only some of their rows have."""
        builder, is_local = _builder(self.path)
        return value if is_local and builder == "json" else unfilled(value)

    def _teacher_messages(
        self, index: int, row: Mapping[str, Any], messages: Sequence[Message]
    ) -> tuple[Message, ...] | None:
        """The prompt with what the row shows the teacher alone; None if there is nothing of that kind."""
        if self.teacher_field is None or (not self.teacher_required and _is_empty(row.get(self.teacher_field))):
            return None
        fix = "Set teacher_field to the right name, or teacher_required to false: the teacher then reads no more."
        value = self._structure(self._field(index, row, self.teacher_field, fix))
        shown = [{"role": "system", "content": value}] if isinstance(value, str) else value
        place = f"Row {index} of {self.path!r}: {self.teacher_field!r}"
        return tuple(with_shown_messages(messages, read_messages(place, shown)))

    def _field(self, index: int, row: Mapping[str, Any], name: str, fix: str = WHICH_FIELD) -> Any:
        value = row.get(name)
        if _is_empty(value):
            fields = ", ".join(sorted(row))
            raise PromptDataError(f"Row {index} of {self.path!r} has no {name!r}; its fields are {fields}. {fix}")
        return value


def _is_empty(value: Any) -> bool:
    return value is None or value == "" or value != value  # the last: not a number, which stands for an empty cell


def _as_text(place: str, value: Any) -> str:
    """Texts as they are; tests in lists or structures as JSON, which a grader can read again."""
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value, ensure_ascii=False, default=str)
    except RecursionError as error:
        raise PromptDataError(f"{place} is nested too deep for a grader; leave such rows out.") from error


def _builder(path: str) -> tuple[str | None, bool]:
    """(datasets builder for a data file or None, whether the path means a local file)."""
    # `org/model` is a hub name, `a.jsonl` a file even where there is none: the error is about what was meant.
    suffixes = [suffix for suffix in Path(path).suffixes if suffix not in COMPRESSIONS]
    builder = BUILDERS.get(suffixes[-1]) if suffixes else None
    looks_local = builder is not None and "://" not in path
    return builder, looks_local or path.startswith((".", "/", "~"))
