"""Results of an evaluation where people look: numbers in; a table in the terminal, a JSON file, MLflow out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from rich import box
from rich.console import Console, JustifyMethod
from rich.markup import escape
from rich.table import Table

from simct_pl.evaluation.scores import BenchmarkResult
from simct_pl.files.parquet import write_json
from simct_pl.tracking.logger import RunLogger
from simct_pl.tracking.run_info import RunInfo

SUMMARY = "summary.json"
BENCHMARK, REASONS = "benchmark", "not right, by reason"
MAX_WIDTH = 1000  # characters; no table of ours is as wide


def results_table(results: Sequence[BenchmarkResult], title: str) -> Table:
    """A row a benchmark, in per cent."""
    table = Table(title=escape(title))
    rows = [_cells(result) for result in results]
    for column in rows[0] if rows else ():
        # Only the reasons may go over several lines; where that is not enough, print_results() takes the list.
        justify: JustifyMethod = "left" if column in (BENCHMARK, REASONS) else "right"
        table.add_column(column, justify=justify, no_wrap=column != REASONS, min_width=len(column))
    for cells in rows:
        table.add_row(*cells.values())
    return table


def results_list(results: Sequence[BenchmarkResult], title: str) -> Table:
    """The same for a narrow terminal: a column a benchmark would be too many, so a block of lines each."""
    table = Table(title=escape(title), show_header=False, box=box.SIMPLE)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for result in results:
        cells = _cells(result)
        table.add_row(f"[bold]{cells.pop(BENCHMARK)}[/]", "")
        for name, value in cells.items():
            if value:
                table.add_row(name, value)
        table.add_section()
    return table


def print_results(results: Sequence[BenchmarkResult], title: str, console: Console | None = None) -> None:
    """Print the results on standard output: as a table where it is wide enough for one, else as a list."""
    console = console or Console()
    narrowest = results_table([replace(result, reasons={}) for result in results], "")  # reasons go over several lines
    width = console.measure(narrowest, options=console.options.update(max_width=MAX_WIDTH)).maximum
    show = results_table if width <= console.width else results_list
    console.print(show(results, title))


def _cells(result: BenchmarkResult) -> dict[str, str]:
    """What is shown of a result, by its heading."""
    spread = f" ± {100 * result.std:.1f}" if result.std is not None else ""
    wrong = {reason: count for reason, count in result.reasons.items() if reason != "right"}
    return {
        BENCHMARK: escape(result.benchmark),
        "problems": str(result.num_problems),
        "seeds": str(result.num_seeds),
        "accuracy ± std": f"{100 * result.accuracy:.1f}{spread}",
        "95 % interval": f"{100 * result.low:.1f} to {100 * result.high:.1f}",
        "pass@k": ", ".join(f"@{k} {100 * value:.1f}" for k, value in result.pass_at.items() if k > 1),
        "cut": f"{100 * result.truncation_rate:.1f}",
        "tokens": f"{result.response_tokens:.0f}",
        REASONS: ", ".join(f"{count} {escape(reason)}" for reason, count in wrong.items()),
    }


def write_summary(folder: Path, results: Sequence[BenchmarkResult]) -> Path:
    """Write summary.json; its path.

    Raises:
        ExportError: if it cannot be written.
    """
    path = folder / SUMMARY
    write_json(path, [asdict(result) for result in results])
    return path


def log_results(logger: RunLogger, results: Sequence[BenchmarkResult], folder: Path, settings: str) -> None:
    """Send metrics, settings and the summary to MLflow, and end the run."""
    logger.run_info = RunInfo.collect("evaluate", settings)
    logger.log_hyperparams({"evaluation": settings})
    for result in results:
        logger.log_metrics(result.metrics())
    logger.experiment.log_artifact(None, str(folder / SUMMARY))
    logger.finalize("success")
    logger.end()
