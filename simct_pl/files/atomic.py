"""Files and folders that appear whole or not at all: written beside their place, flushed, renamed into it.

In: where something shall be, and whoever writes it. Out: what was written, under its name; after a failure or a kill,
what was there before. A kill leaves a hidden neighbour, which a later write of the same name removes.
"""

from __future__ import annotations

import glob
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from simct_pl.errors import ExportError

STALE_SECONDS = 86_400  # a younger neighbour may be another process's that still writes


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a path to write a file to; it replaces `path` when the block ends without an exception.

    Raises:
        ExportError: if there is no place beside `path`, or what was written cannot be put there. What the block raises
            comes through as it is.
    """
    with _beside(path) as staging:
        fresh = staging / "new"
        yield fresh
        with write_errors(path):
            flush(fresh)
            fresh.replace(path)
            flush(path.parent)


@contextmanager
def whole_folder(path: Path, survives_power_cut: bool = True) -> Iterator[Path]:
    """Give an empty folder to fill; it replaces the folder `path` when the block ends without an exception.

    survives_power_cut: wait until its files are on the disk; what is read once and removed needs no such thing.

    Raises:
        ExportError: see whole_file.
    """
    with _beside(path) as staging:
        fresh = staging / "new"
        with write_errors(path):
            fresh.mkdir()
        yield fresh
        with write_errors(path):
            for file in fresh.rglob("*") if survives_power_cut else ():
                flush(file)
            put_folder(fresh, path, staging / "old")


def put_folder(fresh: Path, path: Path, aside: Path) -> None:
    """Rename a folder whose files are flushed into place. What was there goes to `aside`, or back if that fails.

    Raises:
        OSError: if it cannot be renamed.
    """
    flush(fresh)
    if path.exists():
        path.rename(aside)
    try:
        fresh.rename(path)
    except OSError:
        if aside.exists():
            aside.rename(path)
        raise
    flush(path.parent)


def flush(path: Path) -> None:
    """Make a file's content, or the names in a folder, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def write_errors(path: Path, *others: type[Exception]) -> Iterator[None]:
    """Say of an OSError, or one of the others, which output it kept from being written.

    Raises:
        ExportError: instead of it.
    """
    kinds: tuple[type[Exception], ...] = (OSError, *others)
    try:
        yield
    except kinds as error:
        raise ExportError(f"{str(path)!r} cannot be written: {error}. What was there before is untouched.") from error


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """A hidden folder in the folder of `path`, which no pattern for finished files matches."""
    with write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        staging = TemporaryDirectory(
            prefix=f".{path.name}-", suffix=".part", dir=path.parent, ignore_cleanup_errors=True
        )
    with staging as folder:
        yield Path(folder)
    _remove_leftovers(path)


def _remove_leftovers(path: Path) -> None:
    """Remove what killed processes left. Only after a write: one of them may have held the last whole version."""
    for left_over in path.parent.glob(f".{glob.escape(path.name)}-????????.part"):
        with suppress(OSError):  # another process was faster
            if time.time() - left_over.stat().st_mtime > STALE_SECONDS:
                shutil.rmtree(left_over)
