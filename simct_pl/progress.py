"""A progress bar for what takes longer than a few seconds; it goes to stderr and leaves nothing behind."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

Item = TypeVar("Item")


class Bar:
    """One line of a progress display."""

    def __init__(self, display: Progress, task: TaskID) -> None:
        self._display, self._task = display, task

    def advance(self, count: int = 1) -> None:
        """So many more are done."""
        self._display.advance(self._task, count)

    def describe(self, text: str) -> None:
        """Say what is being done now."""
        self._display.update(self._task, description=text)


@contextmanager
def progress(description: str, total: int | None, shown: bool = True) -> Iterator[Bar]:
    """A bar of `total` steps; without a total, a count. shown: False on all ranks but one."""
    clocks = TimeElapsedColumn(), TimeRemainingColumn()
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), *clocks
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not shown) as display:
        yield Bar(display, display.add_task(description, total=total))


def follow(items: Sequence[Item], description: str) -> Iterator[Item]:
    """The items, with a bar that counts those that are done."""
    with progress(description, len(items)) as bar:
        for item in items:
            yield item
            bar.advance()
