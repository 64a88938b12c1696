"""What a fit shows when it is over: held-out metrics before and after, sample answers, and where to look further."""

from __future__ import annotations

import lightning as L
from rich.console import Console
from rich.table import Table
from rich.text import Text

from simct_pl.tracking.artifacts import MLFLOW_LOGGERS
from simct_pl.tracking.logger import TRACKING_URI
from simct_pl.tracking.outputs import OutputWriter
from simct_pl.training.held_out import HeldOutResult
from simct_pl.training.module import DistillModule

MAX_CHARS = 120  # of a prompt or an answer: four of them, three columns wide, are one screen
PERCENT_METRICS = ("accuracy", "truncation_rate", "coverage")


def print_summary(module: DistillModule, trainer: L.Trainer) -> None:
    """Print the summary of a finished fit."""
    console = Console()
    if module.history:
        before, after = module.history[0], module.history[-1]
        console.print(metrics_table(before, after))
        if after.samples:
            console.print(samples_table(before, after))
    for lesson in module.lessons.values():
        vocab, named = lesson.pair.shared_vocab, f" with {lesson.name}" if len(module.lessons) > 1 else ""
        console.print(
            f"Shared vocabulary{named}: {len(vocab):,} columns of {len(vocab.student_columns):,} student and "
            f"{len(vocab.teacher_columns):,} teacher tokens."
        )
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, OutputWriter):
            console.print(f"{type(callback).__name__}: {callback.output}", soft_wrap=True)
    if any(isinstance(logger, MLFLOW_LOGGERS) for logger in trainer.loggers):
        console.print(f"Metrics, recipe and samples: mlflow ui --backend-store-uri {TRACKING_URI}", soft_wrap=True)


def metrics_table(before: HeldOutResult, after: HeldOutResult) -> Table:
    """Every held-out metric before and after."""
    table = Table(title="Held-out prompts")
    table.add_column("metric")
    table.add_column(f"step {before.step}", justify="right")
    table.add_column(f"step {after.step}", justify="right")
    for name, value in after.metrics.items():
        table.add_row(name, _number(name, before.metrics[name]), _number(name, value))
    return table


def samples_table(before: HeldOutResult, after: HeldOutResult) -> Table:
    """The same held-out prompts answered before and after."""
    table = Table(title="Sample answers")
    for column in ("prompt", f"step {before.step}", f"step {after.step}"):
        table.add_column(column, overflow="fold")
    for first, last in zip(before.samples, after.samples, strict=True):
        cells = _answer(first.response, first.score), _answer(last.response, last.score)
        table.add_row(Text(in_one_line(first.prompt)), *cells)
    return table


def in_one_line(text: str) -> str:
    """A text as a table's cell can hold it: line breaks and what does not print escaped, a long middle left out."""
    shown = "".join("⏎" if c == "\n" else c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return shown if len(shown) <= MAX_CHARS else f"{shown[: MAX_CHARS // 2]} … {shown[-MAX_CHARS // 2 :]}"


def _number(name: str, value: float) -> str:
    return f"{value:.1%}" if name.rpartition("/")[2] in PERCENT_METRICS else f"{value:.3f}"


def _answer(response: str, score: float | None) -> Text:
    style = "" if score is None else ("green" if score >= 0.5 else "red")
    mark = "" if score is None else ("✓ " if score >= 0.5 else "✗ ")
    return Text(mark + in_one_line(response), style=style)
