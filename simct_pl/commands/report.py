"""`python -m simct_pl report`: the runs of a sweep, compared: a table, pictures, one page."""

from __future__ import annotations

import argparse
from pathlib import Path


def main(argv: list[str]) -> int:
    """Write report.html, report.md and the PNGs; print the table.

    Raises:
        TrackingError: if the sweep or the metric is not there. RecipeError: for an unknown method.
    """
    parser = argparse.ArgumentParser(
        prog="python -m simct_pl report",
        description="Compare the methods of a sweep over their seeds. Reads MLflow; runs nothing.",
    )
    parser.add_argument("--sweep", required=True, help="name in the sweep's file")
    parser.add_argument("--baseline", help="method that the others are compared with, seed by seed")
    parser.add_argument("--upper", help="method whose gain is the most that can be had")
    parser.add_argument("--metric", default="eval/accuracy", help="as MLflow has it (default: eval/accuracy)")
    parser.add_argument("--lower-is-better", action="store_true", help="for losses and bits")
    parser.add_argument("--tracking-uri", help="of the server or database (default: the local runs')")
    parser.add_argument("--output", type=Path, help="folder (default: runs/sweeps/NAME/report)")
    arguments = parser.parse_args(argv)
    return _write(arguments, arguments.output or Path("runs/sweeps") / arguments.sweep / "report")


def _write(arguments: argparse.Namespace, folder: Path) -> int:
    from rich.console import Console
    from rich.table import Table

    from simct_pl.export import check_parent
    from simct_pl.lab.compare import check_metric, compare
    from simct_pl.lab.page import html, markdown, table_rows, verdict
    from simct_pl.lab.pictures import draw_all
    from simct_pl.lab.results import load_results
    from simct_pl.summary import TRACKING_URI

    check_metric(arguments.metric)
    tracking_uri = arguments.tracking_uri or TRACKING_URI
    check_parent(folder)
    console = Console()
    with console.status(f"reading {arguments.sweep}"):
        results = load_results(arguments.sweep, tracking_uri, arguments.metric)
        compared = compare(results, arguments.metric, arguments.baseline, arguments.upper, arguments.lower_is_better)
    rows, statement = table_rows(results, compared, arguments.baseline, arguments.upper), verdict(compared)
    with console.status("drawing"):
        pictures = draw_all(results, compared, arguments.metric)
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in pictures.items():
        (folder / f"{name}.png").write_bytes(data)
    (folder / "report.md").write_text(markdown(rows, statement), encoding="utf-8")
    page = folder / "report.html"
    page.write_text(html(results, rows, arguments.metric, statement, pictures), encoding="utf-8")
    table = Table(*rows[0], title=f"{results.name}: {arguments.metric}", caption=statement)
    for row in rows:
        table.add_row(*row.values())
    console.print(table)
    if results.missing:
        console.print(f"Without a finished run: {'; '.join(results.missing)}")
    console.print(f"{page}")
    return 0
