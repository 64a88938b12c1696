"""Seconds and bytes: the clock, the peak of a process's memory, and a fresh process to measure in."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

Result = TypeVar("Result")

MIB = 2**20


def best_seconds(run: Callable[[], Any], repeats: int = 3, warmup: int = 1) -> float:
    """Wall-clock seconds of the fastest of some runs: the others were disturbed by something else."""
    for _ in range(warmup):
        run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


@dataclass
class Peak:
    """Bytes of resident memory at the start of a section, and at most during it."""

    start: int = 0
    most: int = 0

    @property
    def extra(self) -> int:
        return self.most - self.start


@contextmanager
def peak_memory() -> Iterator[Peak]:
    """Watch the process's resident memory (Linux: VmRSS, and VmHWM after a reset).

    Run it in a fresh process (`in_fresh_process`): memory that earlier work has left with the allocator would be used
    again and hide what a section needs.
    """
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM to VmRSS
    peak = Peak(start=_status_bytes("VmRSS"))
    try:
        yield peak
    finally:
        peak.most = _status_bytes("VmHWM")


def _status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}; memory can be measured on Linux only.")


def in_fresh_process(run: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
    """run(*args, **kwargs) in a new interpreter; run must be a module-level function.

    Raises:
        BrokenProcessPool: if the process died, as it does when memory runs out.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(run, *args, **kwargs).result()
