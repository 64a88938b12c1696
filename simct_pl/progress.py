"""A progress bar for what takes longer than a few seconds; it goes to stderr and leaves nothing behind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn


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
def progress(description: str, total: int | None) -> Iterator[Bar]:
    """A bar of `total` steps; without a total, a count."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as display:
        yield Bar(display, display.add_task(description, total=total))
