"""Cells in processes of their own: what one does to its process, no other cell and no sweep notices.

In: cells, and the program that runs one. Out: how each of them ended. A fork server has the heavy imports done, so that
a cell starts in a moment; the processes end with the sweep, however it ends.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

from simct_pl.lab.sweep_file import Cell

GRACE = 10.0  # seconds between asking a cell to end and killing it
# Not `callbacks`: which package that is, is decided where a recipe is read.
PRELOADED = ["simct_pl.config.lightning_cli", "mlflow", "matplotlib.pyplot", "transformers.models.llama"]

Program = Callable[[list[str]], int]  # takes a command line, returns an exit code; importable by its name


@dataclass(frozen=True)
class Ended:
    """A cell that has ended. exit_code: negative for a signal. seconds: that it took."""

    cell: Cell
    exit_code: int
    seconds: float


class CellPool:
    """Runs cells, some at a time.

    Args:
        program: runs a cell's command line. jobs: processes at a time. threads: of torch in each.
    """

    def __init__(self, program: Program, jobs: int, threads: int) -> None:
        self.program, self.jobs, self.threads = program, jobs, threads
        self.running: dict[int, tuple[BaseProcess, Cell, float]] = {}  # by sentinel
        # Before anything is imported: OpenMP reads it once.
        os.environ["OMP_NUM_THREADS"] = str(threads)
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(PRELOADED)

    def run(self, cells: list[Cell], tags: dict[str, str]) -> Iterator[Ended]:
        """Run all, in order as far as places are free; yields each as it ends.

        tags: of every cell's tracked run, beside those that say which cell it is.
        """
        # Reversed, so that pop() gives them in order.
        waiting = list(reversed(cells))
        try:
            while waiting or self.running:
                while waiting and len(self.running) < self.jobs:
                    self._start(waiting.pop(), tags)
                # A sentinel is ready when its process is gone, whatever ended it; nobody polls.
                for sentinel in multiprocessing.connection.wait(list(self.running)):
                    assert isinstance(sentinel, int)
                    process, cell, began = self.running.pop(sentinel)
                    process.join()
                    assert process.exitcode is not None
                    yield Ended(cell, process.exitcode, time.monotonic() - began)
        finally:
            # Also when the caller stops listening, or is interrupted: no cell outlives the sweep.
            self._stop()

    def _start(self, cell: Cell, tags: dict[str, str]) -> None:
        # What an earlier attempt left goes now and not before: a sweep that is stopped leaves the others' results.
        shutil.rmtree(cell.folder, ignore_errors=True)
        # What a report finds the cell by; the process tags its run with them.
        own = {"simct.method": cell.method, "simct.seed": str(cell.seed), "simct.cell": cell.name}
        process = self._context.Process(
            target=run_cell,
            args=(self.program, fit_arguments(cell), log_of(cell), tags | own | {"mlflow.runName": cell.name}),
        )
        process.start()
        self.running[process.sentinel] = process, cell, time.monotonic()

    def _stop(self) -> None:
        """End what still runs."""
        processes = [process for process, _, _ in self.running.values()]
        for process in processes:
            process.terminate()
        # All are asked first, and then share one time of grace.
        deadline = time.monotonic() + GRACE
        for process in processes:
            process.join(max(deadline - time.monotonic(), 0.0))
            process.kill()
            process.join()
        self.running.clear()


def fit_arguments(cell: Cell) -> list[str]:
    """The cell's fit as a command line; its last recipe is written into its folder."""
    cell.folder.mkdir(parents=True, exist_ok=True)
    overlay = cell.folder / "cell.yaml"
    overlay.write_text(cell.overlay, encoding="utf-8")
    return ["fit", *(part for path in (*cell.recipes, overlay) for part in ("--recipe", str(path)))]


def log_of(cell: Cell) -> Path:
    return cell.folder / "log.txt"


def run_cell(program: Program, arguments: list[str], log: Path, tags: dict[str, str]) -> None:
    """Be a cell: everything printed goes into its log, and the process ends with the command's exit code."""
    import torch

    from simct_pl.tracking.logger import set_run_tags

    _end_with_parent()
    with open(log, "wb") as file:
        # The file descriptors and not sys.stdout: libraries in C write there too.
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    set_run_tags(tags)
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    sys.exit(program(arguments))


def _end_with_parent() -> None:
    """End when the sweep does, even if it was killed and could not say so."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    # The parent's sentinel is ready when it has gone. `_exit`, because the cell may be anywhere, even in a library.
    def wait() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=wait, daemon=True, name="parent").start()
