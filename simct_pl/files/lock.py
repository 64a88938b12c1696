"""One process at a time writes a folder: who comes second is refused, and told who is there.

The lock is the operating system's, on a hidden file in the folder, and ends with the process however that ends: nothing
is left behind that a resumed run would have to clear away. The file says who has the folder, and stays: were it
removed, a process that had just opened it could lock a file that nobody else sees.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from io import FileIO
from pathlib import Path
from weakref import WeakSet

from simct_pl.errors import ExportError

NAME = ".in_use"


@contextmanager
def sole_writer(folder: Path, doing: str, setting: str = "output") -> Iterator[None]:
    """Keep other processes from writing a folder meanwhile. Several ranks of one run: the first alone takes it.

    doing: the command, for whoever is refused. setting: of the recipe, that names the folder. On a file system without
    locks a warning is all there is.

    Raises:
        ExportError: if another process, or another part of this one, has the folder; or if it cannot be written to.
    """
    path = folder.expanduser() / NAME
    file = _opened(path)
    with closing(file):
        try:
            has_locks = claim(file)
        except BlockingIOError as error:
            raise ExportError(
                f"{folder} is in use by {_note_in(file)}; two would write over each other. Wait for its end, or set "
                f"{setting} to another folder."
            ) from error
        if has_locks:
            _leave_note(file, doing)
        else:
            warnings.warn(
                f"{folder} is on a file system without locks: see to it that nothing else writes there.", stacklevel=3
            )
        yield


def claim(file: FileIO) -> bool:
    """Lock an open file until it is closed; whether the file system has locks at all.

    Processes that are forked meanwhile do not keep the lock: theirs is closed.

    Raises:
        BlockingIOError: if another open file has it.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:  # NFS without a lock daemon, and other network file systems
        return False
    _open_files.add(file)
    return True


# A lock belongs to the open file, which a fork has too: without this, a worker that outlives a killed run would keep
# the run's folder. A new program (exec) closes it by itself.
_open_files: WeakSet[FileIO] = WeakSet()


def _close_in_child() -> None:
    for file in list(_open_files):
        file.close()


os.register_at_fork(after_in_child=_close_in_child)


def _opened(path: Path) -> FileIO:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return open(path, "ab+", buffering=0)
    except OSError as error:
        raise ExportError(f"{path.parent} cannot be written to: {error}. Choose another output folder.") from error


def _leave_note(file: FileIO, doing: str) -> None:
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    note = {"doing": doing, "pid": os.getpid(), "host": socket.gethostname(), "since": since}
    with suppress(OSError):  # a full disk: the lock holds without a note
        file.truncate(0)
        file.write(json.dumps(note).encode())


def _note_in(file: FileIO) -> str:
    """Who has the lock, in words."""
    try:
        file.seek(0)
        note = json.loads(file.read())
        return f"`{note['doing']}`, process {note['pid']} on {note['host']} since {note['since']}"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):  # just being written
        return "another process"
