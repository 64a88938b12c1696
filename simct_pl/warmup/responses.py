"""Sampled responses on disk: parts written as they come, each whole or not there, and one file when all are done.

folder/settings.json           what the responses depend on
folder/parts/<n>.parquet       the responses to some prompts; <n> is the first prompt's place
folder/responses.parquet       all of them, when generation is over
folder/report.json             how many there are, and what was given up
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from simct_pl.errors import PromptDataError, ResponseError
from simct_pl.files.parquet import (
    MESSAGES,
    read_json,
    read_parquet,
    schema_of,
    with_tools,
    write_json,
    write_parquet,
)
from simct_pl.files.settings import keep_settings
from simct_pl.types import Message

logger = logging.getLogger(__name__)

SCHEMA = pa.schema(
    [
        ("prompt", pa.int64()),
        ("sample", pa.int32()),
        ("messages", MESSAGES),
        ("answer", pa.string()),
        ("domain", pa.string()),
        ("response", pa.string()),
        ("finish_reason", pa.string()),
        ("seed", pa.int64()),
        ("attempt", pa.int32()),
        ("num_tokens", pa.int32()),
        ("response_ids", pa.list_(pa.int32())),
    ]
)
GIVEN_UP = "given_up"  # the finish reason of a request that was asked in vain; never leaves the parts


@dataclass(frozen=True)
class Response:
    """One sampled response and what it answers.

    prompt, sample: index of the prompt in its data set, and which of its responses. response: the text without the
    stop, never empty. finish_reason: "stop" | "length". seed: of the sampling. attempt: 0, or how often the request was
    asked again. response_ids: the sampled ids, stop included; num_tokens of them. tools: of the prompt, as JSON.
    """

    prompt: int
    sample: int
    messages: list[Message]
    answer: str | None
    domain: str | None
    response: str
    finish_reason: str
    seed: int
    attempt: int
    num_tokens: int
    response_ids: list[int]
    tools: str | None = None


class ResponseStore:
    """The responses of one generation.

    Args:
        folder: of the files above. settings: model, sampling, prompts; plain values. has_tools: whether prompts have
            tools, or messages that call some; the files then have columns for them.

    Raises:
        ResponseError: if the folder holds responses of other settings. ExportError: if it cannot be written.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], has_tools: bool = False) -> None:
        self.schema = with_tools(SCHEMA) if has_tools else SCHEMA
        self.folder, self.parts = folder, folder / "parts"
        self.path = folder / "responses.parquet"
        keep_settings(folder, settings, ResponseError)

    @property
    def finished(self) -> bool:
        """Whether all responses are in the one file."""
        return self.path.is_file()

    def done(self) -> set[int]:
        """Prompts that have been answered, or given up, so far.

        A part that is damaged is removed with a warning: its prompts are asked again, and give the same responses.
        """
        found: set[int] = set()
        for part in self._paths():
            try:
                if missing := sorted(set(self.schema.names) - set(schema_of(part).names)):
                    raise PromptDataError(f"{str(part)!r} has no {', '.join(missing)}.")
                found |= {row["prompt"] for row in read_parquet(part)}  # all of it: a later column may be damaged
            except PromptDataError as error:
                logger.warning("%s It is removed, and its prompts are asked again.", error)
                with suppress(OSError):  # then it is written over
                    part.unlink()
        return found

    def add(self, place: int, responses: Sequence[Response]) -> None:
        """Write the responses to some prompts; all of a prompt's come together."""
        rows = [asdict(response) for response in responses]
        write_parquet(self.parts / f"{place:08d}.parquet", self.schema, [rows])

    def rows(self) -> Iterator[dict[str, Any]]:
        """What the parts hold, in the order of the prompts."""
        for part in self._paths():
            yield from read_parquet(part)

    def finish(self, report: dict[str, Any]) -> int:
        """Put the parts into one file, without what was given up, and remove them; returns the number of responses."""
        write_json(self.folder / "report.json", report)
        num_responses = write_parquet(self.path, self.schema, self._answered())
        self.tidy()
        return num_responses

    def report(self) -> dict[str, Any]:
        """The report of a finished generation."""
        return read_json(self.folder / "report.json")

    def tidy(self) -> None:
        """Remove the parts of a finished generation."""
        shutil.rmtree(self.parts, ignore_errors=True)  # with what a killed process left half written

    def _answered(self) -> Iterator[list[dict[str, Any]]]:
        for part in self._paths():
            yield [row for row in read_parquet(part) if row["finish_reason"] != GIVEN_UP]

    def _paths(self) -> list[Path]:
        return sorted(self.parts.glob("[0-9]*.parquet"))
