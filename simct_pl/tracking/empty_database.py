"""MLflow's empty database, kept in the cache: its making runs some forty migrations, which take seconds.

In: a new database that MLflow has just made. Out: a copy of it for the next one to begin with, by MLflow's version.
What cannot be copied or read costs time and nothing else.
"""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import time
from contextlib import closing
from importlib.metadata import version
from pathlib import Path

from simct_pl.files.cache import cache_folder


def kept_database() -> Path:
    """Where the copy is, if there is one."""
    return cache_folder() / f"mlflow-{version('mlflow')}.db"


def take_empty(path: Path) -> bool:
    """Put the copy at a path; False, and nothing there, if there is none that is whole."""
    try:
        shutil.copyfile(kept_database(), path)
        with closing(sqlite3.connect(path)) as database:
            whole = database.execute("PRAGMA quick_check").fetchone() == ("ok",)
    except (OSError, sqlite3.DatabaseError):
        whole = False
    if not whole:
        path.unlink(missing_ok=True)
    return whole


def keep_empty(path: Path) -> None:
    """Keep a copy of a database in which nothing has been logged, in one step, so that nobody ever sees half of it."""
    kept = kept_database()
    part = kept.with_name(f".{kept.name}-{time.time_ns()}")
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, part)
        with closing(sqlite3.connect(part)) as database, database:
            # MLflow's "Default" names a folder beside the first database; each new one is given its own.
            database.execute("DELETE FROM experiments")
        part.replace(kept)
    except (OSError, sqlite3.DatabaseError):
        with contextlib.suppress(OSError):
            part.unlink()
