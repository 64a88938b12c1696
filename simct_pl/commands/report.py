"""`python -m simct_pl report`: the runs of a sweep, compared: tables, pictures, one page."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from simct_pl.commands.output import user_path

if TYPE_CHECKING:
    from simct_pl.lab.compare import Comparison
    from simct_pl.lab.results import SweepResults


def main(argv: list[str]) -> int:
    """Write report.html, report.md and the PNGs; print the table.

    Raises:
        TrackingError: if the sweep or the metric is not there. RecipeError: for an unknown method.
    """
    parser = argparse.ArgumentParser(
        prog="python -m simct_pl report",
        description="Compare the methods of a sweep over their seeds. Reads MLflow; runs nothing. "
        "How to read it: docs/lab.md.",
    )
    parser.add_argument("--sweep", required=True, help="name in the sweep's file")
    parser.add_argument("--baseline", help="method that the others are compared with, seed by seed (default: the best)")
    parser.add_argument("--upper", help="method whose gain is the most that can be had")
    parser.add_argument("--metric", default="eval/accuracy", help="as MLflow has it (default: eval/accuracy)")
    parser.add_argument(
        "--lower-is-better",
        action=argparse.BooleanOptionalAction,
        help="which way is better (default: by the name; lower for losses, bits, cut responses and seconds)",
    )
    parser.add_argument("--tracking-uri", help="of the server or database (default: the local runs')")
    parser.add_argument("--output", type=user_path, help="folder (default: runs/sweeps/NAME/report)")
    arguments = parser.parse_args(argv)
    return _write(arguments, arguments.output or Path("runs/sweeps") / arguments.sweep / "report")


def _write(arguments: argparse.Namespace, folder: Path) -> int:
    from rich.console import Console

    from simct_pl.config.summary import TRACKING_URI
    from simct_pl.files.outputs import check_parent
    from simct_pl.lab.compare import compare
    from simct_pl.lab.metric import check_name
    from simct_pl.lab.page import html
    from simct_pl.lab.pictures import draw_all
    from simct_pl.lab.results import load_results
    from simct_pl.lab.tables import markdown

    check_name(arguments.metric)
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # for a file of a few lines
    console = Console(stderr=True)
    with console.status(f"reading {arguments.sweep}"):
        results = load_results(arguments.sweep, arguments.tracking_uri or TRACKING_URI, arguments.metric)
        compared = compare(results, arguments.baseline, arguments.upper, arguments.lower_is_better)
    check_parent(folder / "report.html")
    with console.status("drawing"):
        pictures = draw_all(results, compared)
    for name, data in pictures.items():
        (folder / f"{name}.png").write_bytes(data)
    (folder / "report.md").write_text(markdown(results, compared), encoding="utf-8")
    (folder / "report.html").write_text(html(results, compared, pictures), encoding="utf-8")
    _print(results, compared, folder / "report.html")
    return 0


def _print(results: SweepResults, compared: Comparison, page: Path) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from simct_pl.lab.tables import missing_lines, result_rows, verdict

    # Into a file or a pipe a table goes unfolded.
    rows, console = result_rows(compared), Console(width=None if sys.stdout.isatty() else 200)
    table = Table(title=f"{results.name}: {results.metric}", box=box.SIMPLE_HEAD)
    for title in rows[0]:
        is_name = title == "method"
        table.add_column(title, justify="left" if is_name else "right", no_wrap=is_name)
    for row in rows:
        table.add_row(*row.values())
    console.print(table, highlight=False)
    for line in (verdict(compared), *(f"Not counted: {one}" for one in missing_lines(results.missing)), *results.notes):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    console.print(str(page), markup=False, highlight=False, soft_wrap=True)
