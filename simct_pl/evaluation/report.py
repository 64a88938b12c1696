"""Results of an evaluation where people look: a table in the terminal, a JSON file, MLflow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from simct_pl.evaluation.scores import BenchmarkResult
from simct_pl.files.parquet import write_json
from simct_pl.tracking.logger import RunLogger
from simct_pl.tracking.run_info import RunInfo

SUMMARY = "summary.json"


def results_table(results: Sequence[BenchmarkResult], title: str) -> Table:
    """A row a benchmark, in per cent."""
    table = Table(title=title)
    for column in ("benchmark", "problems", "seeds", "accuracy ± std", "95 % interval", "pass@k", "cut", "tokens"):
        table.add_column(column, justify="left" if column == "benchmark" else "right")
    table.add_column("not right, by reason")
    for result in results:
        spread = f" ± {100 * result.std:.1f}" if result.std is not None else ""
        wrong = {reason: count for reason, count in result.reasons.items() if reason != "right"}
        table.add_row(
            result.benchmark,
            str(result.num_problems),
            str(result.num_seeds),
            f"{100 * result.accuracy:.1f}{spread}",
            f"{100 * result.low:.1f} to {100 * result.high:.1f}",
            ", ".join(f"@{k} {100 * value:.1f}" for k, value in result.pass_at.items() if k > 1),
            f"{100 * result.truncation_rate:.1f}",
            f"{result.response_tokens:.0f}",
            ", ".join(f"{count} {reason}" for reason, count in wrong.items()),
        )
    return table


def print_results(results: Sequence[BenchmarkResult], title: str) -> None:
    """Print the table on standard output."""
    Console().print(results_table(results, title))


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
