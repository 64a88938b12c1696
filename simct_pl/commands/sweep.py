"""`python -m simct_pl sweep`: every cell of a sweep file as a fit of its own, under one MLflow run, resumable."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simct_pl.commands.output import user_path
from simct_pl.config.recipes import find_recipe
from simct_pl.errors import RecipeError, SweepError

if TYPE_CHECKING:
    from simct_pl.lab.pool import Ended
    from simct_pl.lab.sweep_file import Cell, SweepFile

LOG_TAIL = 12  # lines of a failed cell's log that are shown
RESULT = "result.json"  # in the folder of a cell that has finished


def main(argv: list[str]) -> int:
    """Run what has not been run.

    Raises:
        SweepError: at the end, if cells failed.
    """
    parser = argparse.ArgumentParser(
        prog="python -m simct_pl sweep",
        description="Run every cell (method x grid x seed) of a sweep file. Cells that have finished are not run "
        "again, unless their recipes have changed. Compare them with: python -m simct_pl report --sweep NAME",
    )
    parser.add_argument("--recipe", required=True, help="sweep file: a path, or the name of a shipped one")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="cells at a time (default: cores)")
    parser.add_argument("--threads", type=int, default=1, help="of torch in each cell (default 1)")
    parser.add_argument(
        "--output", type=user_path, default=Path("runs/sweeps"), help="folder that holds one folder a sweep"
    )
    parser.add_argument("--list", action="store_true", help="say which cells there are, and run none")
    arguments = parser.parse_args(argv)
    if arguments.jobs < 1 or arguments.threads < 1:
        raise RecipeError(f"--jobs {arguments.jobs} --threads {arguments.threads}; expected at least 1 of each.")
    path = find_recipe(arguments.recipe)
    from simct_pl.lab.sweep_file import SweepFile  # here, so that --help is quick, and a file that is not there

    sweep = SweepFile.load(path)
    cells = sweep.cells((arguments.output / sweep.name).absolute())
    open_cells = [cell for cell in cells if not is_finished(cell)]
    changed = sum((cell.folder / RESULT).is_file() for cell in open_cells)
    again = f", {changed} with other recipes than now, which are run again" if changed else ""
    print(f"{sweep.name}: {len(cells)} cells, {len(cells) - len(open_cells)} of them finished{again}", file=sys.stderr)
    if arguments.list:
        for cell in cells:
            print(f"{'open    ' if cell in open_cells else 'finished'}  {cell.name}")
        return 0
    return run(sweep, path, open_cells, len(cells), arguments.jobs, arguments.threads)


def run(sweep: SweepFile, path: Path, cells: list[Cell], num_cells: int, jobs: int, threads: int) -> int:
    """Run some cells of a sweep; a cell that fails is shown and does not stop the others.

    Raises:
        SweepError: at the end, if cells failed. ExportError: if another process runs the sweep.
    """
    from simct_pl.files.lock import sole_writer

    if not cells:
        return 0
    with sole_writer(cells[0].folder.parent.parent, "sweep"):
        return _run(sweep, path, cells, num_cells, jobs, threads)


def _run(sweep: SweepFile, path: Path, cells: list[Cell], num_cells: int, jobs: int, threads: int) -> int:
    from rich import progress
    from rich.console import Console

    from simct_pl.commands.main import main as command_line
    from simct_pl.lab.pool import CellPool
    from simct_pl.lab.tracked import SweepRun

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that cells are ended
    parent = SweepRun.open(sweep.name, path, cells[0].folder.parent.parent)
    pool, failed = CellPool(command_line, jobs, threads), list[str]()
    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns, console=Console(stderr=True), speed_estimate_period=3600) as bar:
        task = bar.add_task(sweep.name, total=num_cells, completed=num_cells - len(cells))
        for ended in pool.run(cells, parent.child_tags):
            if ended.exit_code == 0:
                _write_result(ended)
            else:
                failed.append(ended.cell.name)
                bar.console.print(_failure(ended), markup=False, highlight=False)
            bar.update(task, advance=1, description=f"{sweep.name}, {len(failed)} failed" if failed else sweep.name)
    parent.close(failed)
    if failed:
        raise SweepError(
            f"{len(failed)} of {len(cells)} cells failed: {'; '.join(failed)}. "
            "Their logs are log.txt in their folders. The same command runs just them again."
        )
    return 0


def is_finished(cell: Cell) -> bool:
    """Whether the cell, as its recipes are now, has been run to its end."""
    path = cell.folder / RESULT
    try:
        return bool(json.loads(path.read_text(encoding="utf-8"))["key"] == cell.key)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):  # a damaged one: the cell is run again
        return False


def _write_result(ended: Ended) -> None:
    from simct_pl.files.parquet import write_json

    result: dict[str, Any] = {"key": ended.cell.key, "cell": ended.cell.name, "seconds": round(ended.seconds, 1)}
    write_json(ended.cell.folder / RESULT, result)


def _failure(ended: Ended) -> str:
    from simct_pl.lab.pool import log_of

    log = log_of(ended.cell)
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
    how = f"exit code {ended.exit_code}" if ended.exit_code >= 0 else f"signal {-ended.exit_code}"
    return "\n".join([f"{ended.cell.name}: {how} after {ended.seconds:.0f} s", *(f"  {s}" for s in lines[-LOG_TAIL:])])
