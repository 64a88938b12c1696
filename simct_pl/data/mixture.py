"""A mixture of prompts: rows of several sources in, one Parquet file for PromptDataModule and a manifest out.

Each source is streamed once, and only what may end in the mixture is kept. A row stays out when it cannot be read, when
a filter says so, when it overlaps a test prompt, or when it repeats one that is in; the manifest counts each reason.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa

from simct_pl.data.draw import Draw
from simct_pl.data.filters import RowFilter, text_of
from simct_pl.data.overlap import OverlapIndex
from simct_pl.data.source import PromptSource
from simct_pl.data.tools import as_stored, said_in, tools_as_json, uses_tools
from simct_pl.data.words import digest_of, words_of
from simct_pl.errors import PromptDataError, RecipeError
from simct_pl.files.parquet import MESSAGES, with_tools, write_parquet
from simct_pl.types import Message, Prompt

logger = logging.getLogger(__name__)
NUM_EXAMPLES = 3  # of rows that cannot be read, in the manifest
SCHEMA = pa.schema(
    [
        ("messages", MESSAGES),
        ("answer", pa.string()),
        ("response", pa.string()),
        ("domain", pa.string()),
        ("source", pa.string()),
        ("row", pa.int64()),
        ("digest", pa.string()),
    ]
)


@dataclass(frozen=True)
class Strata:
    """A source in parts: by the values of a field, each with its share of the source's count. Other rows stay out.

    Raises:
        RecipeError: for shares that are not positive, or do not add up to 1.
    """

    field: str
    shares: dict[str, float]

    def __post_init__(self) -> None:
        if not self.shares or min(self.shares.values()) <= 0 or abs(sum(self.shares.values()) - 1) > 1e-6:
            raise RecipeError(f"strata of {self.field!r} have shares {self.shares}; expected positive ones, sum 1.")

    def counts(self, count: int) -> dict[str, int]:
        """Rows of each part: whole numbers that add up to count."""
        bounds, total = [0], 0.0
        for share in self.shares.values():
            total += share
            bounds.append(round(total * count))
        return {value: end - start for value, (start, end) in zip(self.shares, pairwise(bounds), strict=True)}


@dataclass(frozen=True)
class MixtureSource:
    """One source of a mixture.

    rows: where they are and which fields hold what. count: rows to draw; null takes all. domain: names the grader of
    responses ("maths", "code"). filters: a row must pass all. strata: how the count is divided.

    Raises:
        RecipeError: for a count below 1, or strata without a count.
    """

    rows: PromptSource
    count: int | None = None
    domain: str = "maths"
    filters: list[RowFilter] = field(default_factory=list)
    strata: Strata | None = None

    def __post_init__(self) -> None:
        if self.count is not None and self.count < 1:
            raise RecipeError(f"count of {self.rows.path!r} is {self.count}; expected at least 1, or null for all.")
        if self.strata is not None and self.count is None:
            raise RecipeError(f"strata of {self.rows.path!r} divide a count; set it.")

    def draws(self, seed: str) -> dict[str | None, Draw[dict[str, Any]]]:
        """An empty draw for each part, by the value of the strata's field."""
        if self.strata is None or self.count is None:
            return {None: Draw(self.count, seed)}
        return {value: Draw(count, seed) for value, count in self.strata.counts(self.count).items()}


@dataclass
class SourceReport:
    """What became of a source, as the manifest shows it.

    rows: digest of each row that is in, by its index. dropped: rows that stayed out, by reason; "not_drawn" are those
    that were fit and not needed. overlapping: which rows overlap what. sha256: of a local file.
    """

    path: str
    wanted: int | None
    taken: int = 0
    num_rows: int = 0
    sha256: str | None = None
    dropped: dict[str, int] = field(default_factory=dict)
    strata: dict[str, int] = field(default_factory=dict)
    unreadable: list[str] = field(default_factory=list)
    overlapping: list[dict[str, Any]] = field(default_factory=list)
    rows: dict[str, str] = field(default_factory=dict)


class MixtureBuilder:
    """Draws from one source after the other; a later one does not repeat what an earlier one gave.

    Args:
        test_index: prompts that must not be overlapped. duplicate_words: rows of different sources that share a run of
            so many words are one. seed: of the draw. advance: called with each row that is read.
    """

    def __init__(
        self, test_index: OverlapIndex, duplicate_words: int, seed: int, advance: Callable[[], None] = lambda: None
    ) -> None:
        self.test_index, self.seed, self.advance = test_index, seed, advance
        self.taken_index = OverlapIndex(duplicate_words)
        self.rows: list[dict[str, Any]] = []
        self.reports: dict[str, SourceReport] = {}

    def add(self, name: str, source: MixtureSource) -> SourceReport:
        """Draw from a source.

        Raises:
            PromptDataError: if none of its rows can be read as the recipe says.
        """
        report = SourceReport(source.rows.path, source.count, sha256=source.rows.sha256())
        # Pass over the source once; a draw keeps no more rows than it was asked for, whatever the source's size.
        draws, dropped = source.draws(f"{self.seed}/{name}"), Counter[str]()
        for index, row in source.rows.rows():
            report.num_rows += 1
            self.advance()
            if reason := self._offer(name, source, index, row, draws, report):
                dropped[reason] += 1
        if report.num_rows and dropped["unreadable"] == report.num_rows:
            raise PromptDataError(f"No row of source {name!r} can be read. {report.unreadable[0]}")
        self._take(name, source, draws, report)
        # A row that left its draw again was fit and is not needed.
        dropped["not_drawn"] += report.num_rows - report.taken - dropped.total()
        report.dropped = dict(+dropped)
        self.reports[name] = report
        return report

    def _offer(
        self,
        name: str,
        source: MixtureSource,
        index: int,
        row: Mapping[str, Any],
        draws: Mapping[str | None, Draw[dict[str, Any]]],
        report: SourceReport,
    ) -> str | None:
        """Put a row into its draw; or why it stays out. What is cheap comes first: most rows of a large source go."""
        # As the recipe says: fields, length, filters, stratum. A hash and a few comparisons a row.
        try:
            prompt = source.rows.prompt(index, row)
        except PromptDataError as error:
            report.unreadable += [str(error)] if len(report.unreadable) < NUM_EXAMPLES else []
            return "unreadable"
        if source.rows.is_too_long(prompt):
            return "too_long"
        for keeps in source.filters:
            if not keeps(row, prompt):
                return keeps.reason
        draw = draws.get(None if source.strata is None else str(row.get(source.strata.field)))
        if draw is None:
            return "in_no_stratum"
        # By its words: most rows of a large source lose the draw here, before anything dear is done with them.
        text = text_of(prompt)
        digest = digest_of(words_of(text))
        num_duplicates = draw.num_duplicates
        if not draw.wants(digest):
            return "duplicate" if draw.num_duplicates > num_duplicates else "not_drawn"
        # Only a candidate is held against the indices, run by run of its words.
        for reason, overlaps in (("contaminated", self.test_index), ("in_earlier_source", self.taken_index)):
            if (found := overlaps.find(text)) is not None:
                report.overlapping.append({"row": index, "reason": reason, **asdict(found)})
                return reason
        draw.add(digest, _as_row(prompt, name, source.domain, digest))
        return None

    def _take(
        self, name: str, source: MixtureSource, draws: Mapping[str | None, Draw[dict[str, Any]]], report: SourceReport
    ) -> None:
        """Move what was drawn into the mixture."""
        digests: set[str] = set()
        for value, draw in draws.items():
            rows = [row for row in draw.rows() if row["digest"] not in digests]  # parts may share some
            digests |= {row["digest"] for row in rows}
            if value is not None:
                report.strata[value] = len(rows)
            # From here on no later source may repeat them.
            for row in rows:
                self.taken_index.add(name, row["row"], text_of_messages(row["messages"]))
                report.rows[str(row["row"])] = row["digest"]
            self.rows += rows
            report.taken += len(rows)
        if source.count is not None and report.taken < source.count:
            logger.warning("Source %r gave %d rows of the %d asked for.", name, report.taken, source.count)

    def shuffled(self) -> list[dict[str, Any]]:
        """The mixture in an order that depends on the seed and on the rows alone."""
        order: Draw[dict[str, Any]] = Draw(None, f"{self.seed}/order")
        return sorted(self.rows, key=lambda row: order.key(f"{row['source']}/{row['row']}"))

    def manifest(self) -> dict[str, Any]:
        """How rows were drawn and what became of each source, as plain values."""
        return {
            "seed": self.seed,
            "decontaminate_words": self.test_index.num_words,
            "mask_numbers": self.test_index.mask_numbers,
            "duplicate_words": self.taken_index.num_words,
            "sources": {name: asdict(report) for name, report in self.reports.items()},
        }

    def write(self, path: Path) -> int:
        """Write the mixture; returns its number of rows."""
        rows = self.shuffled()
        has_tools = any(row["reply"] or uses_tools(row["messages"], row["tools"]) for row in rows)
        return write_parquet(path, with_tools(SCHEMA) if has_tools else SCHEMA, _in_groups(rows, 1000))


def index_of_tests(tests: Mapping[str, PromptSource], num_words: int, mask_numbers: bool) -> OverlapIndex:
    """Runs of words of all test prompts.

    Raises:
        PromptDataError: naming a row that cannot be read: a test prompt that is left out protects nobody.
    """
    index = OverlapIndex(num_words, mask_numbers)
    for name, source in tests.items():
        for row_index, row in source.rows():
            index.add(name, row_index, text_of(source.prompt(row_index, row)))
    return index


def text_of_messages(messages: list[Message]) -> str:
    return "\n".join(map(said_in, messages))


def _as_row(prompt: Prompt, source: str, domain: str, digest: str) -> dict[str, Any]:
    return {
        "messages": list(prompt.messages),
        "answer": prompt.answer,
        "response": prompt.response,
        "tools": prompt.tools,
        "reply": prompt.reply,
        "domain": domain,
        "source": source,
        "row": prompt.index,
        "digest": digest,
    }


def _in_groups(rows: list[dict[str, Any]], size: int) -> Iterator[list[dict[str, Any]]]:
    return (list(map(_stored, rows[start : start + size])) for start in range(0, len(rows), size))


def _stored(row: dict[str, Any]) -> dict[str, Any]:
    """A reply that calls tools is no text: it ends the messages, as in the data set."""
    reply = [row["reply"]] if row["reply"] else []
    return {**row, "messages": as_stored([*row["messages"], *reply]), "tools": tools_as_json(row["tools"])}
