"""Journal: everything a run logs, line by line in a file of its folder, and how much of it the tracker has received.

    folder/<began>.jsonl   one record a line, the first of which says where they go
    folder/<began>.json    the tracker's run id, and how many records it has
    folder/<began>.done    there when the run came to its end

The file is what counts: a tracker that is down, or a run that is killed, loses nothing and repeats nothing.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import threading
import time
from dataclasses import asdict, dataclass, field
from io import FileIO
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn

from simct_pl.errors import TrackingError
from simct_pl.files.parquet import write_json

Record = dict[str, Any]


@dataclass(frozen=True)
class Destination:
    """Where records go: tracking server, experiment, name of the run, folder of artifacts (None: the server's), tags of
    the run. And the run's recipe, as YAML: it says whether a journal without a checkpoint is the same run's.
    """

    tracking_uri: str
    experiment_name: str
    run_name: str
    artifact_location: str | None = None
    recipe: str = ""
    tags: dict[str, str] = field(default_factory=dict)


class Journal:
    """One run's records.

    Args:
        path: of the .jsonl file. A last line that was cut short is removed.

    Raises:
        TrackingError: if the file is no journal, or another process writes to it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115 - open as long as the run
        self._unwritten: list[Record] = []
        _claim(self._file, path)
        lines = _whole_lines(path)
        try:
            self.destination = Destination(**json.loads(lines[0]))
            records: list[Record] = [json.loads(line) for line in lines[1:]]
        except (IndexError, ValueError, TypeError) as error:
            self.close()
            raise TrackingError(f"{path} is no journal of a run: {error}.") from error
        self._seen = {record_key(record) for record in records} - {None}
        receipt = json.loads(self._receipt.read_text()) if self._receipt.is_file() else {}
        self.run_id: str | None = receipt.get("run_id")
        self.num_sent: int = receipt.get("num_sent", 0)
        self._pending = records[self.num_sent :]

    @classmethod
    def begin(cls, folder: Path, destination: Destination) -> Journal:
        """A new journal, named by the time, so that the last one is the newest."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{time.strftime('%Y%m%d-%H%M%S')}-{time.time_ns() % 10**9:09d}.jsonl"
        with open(path, "x", encoding="utf-8") as file:
            file.write(json.dumps(asdict(destination)) + "\n")
        return cls(path)

    @classmethod
    def newest(cls, folder: Path) -> Journal | None:
        paths = sorted(folder.glob("*.jsonl"))
        return cls(paths[-1]) if paths else None

    @property
    def _receipt(self) -> Path:
        return self.path.with_suffix(".json")

    @property
    def ended(self) -> bool:
        """Whether the run came to its end."""
        return self.path.with_suffix(".done").exists()

    def end(self) -> None:
        self.path.with_suffix(".done").touch()

    def add(self, record: Record) -> None:
        """Write a record down, unless it is there: a resumed run logs the steps since its checkpoint again."""
        key = record_key(record)
        with self._lock:
            if key is not None and key in self._seen:
                return
            self._seen.add(key)
            self._unwritten.append(record)
            try:
                while self._unwritten:
                    self._append(self._unwritten[0])
                    self._pending.append(self._unwritten.pop(0))
            except OSError as error:
                if len(self._unwritten) == 1:
                    rank_zero_warn(f"{self.path} cannot be written ({error}); what is logged waits in memory.")

    def _append(self, record: Record) -> None:
        """Write one line, whole or not at all."""
        line, size = json.dumps(record).encode() + b"\n", self._file.seek(0, os.SEEK_END)
        try:
            if self._file.write(line) != len(line):
                raise OSError("there is no room for another line")
        except OSError:
            self._file.truncate(size)
            raise

    def flush(self) -> None:
        """Make what was added survive a power cut."""
        os.fsync(self._file.fileno())

    def pending(self) -> list[Record]:
        """Records that the tracker has not confirmed."""
        with self._lock:
            return list(self._pending)

    def confirm(self, run_id: str, num_records: int = 0) -> None:
        """Remember that the tracker knows the run by this id and has received so many records more."""
        with self._lock:
            del self._pending[:num_records]
        self.run_id, self.num_sent = run_id, self.num_sent + num_records
        write_json(self._receipt, {"run_id": run_id, "num_sent": self.num_sent})

    def close(self) -> None:
        self._file.close()


def record_key(record: Record) -> bytes | None:
    """What makes a record the same as another, its time left out; None for a status, which may come again.

    Metrics are the same if their step and names are: on devices whose sums depend on the order, a repeated step may
    give slightly other values, and a curve with two values at a step is worse than one.
    """
    if record["kind"] == "status":
        return None
    content = {name: value for name, value in record.items() if name != "time_ms"}
    if record["kind"] == "metrics":
        content["values"] = sorted(record["values"])
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).digest()


def _claim(file: FileIO, path: Path) -> None:
    """Keep other processes out while this one lives: two would send the same records twice."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise TrackingError(f"{path} is in use: the run is still going on. Wait for its end.") from error
    except OSError:
        return  # a file system without locks


def _whole_lines(path: Path) -> list[str]:
    """The lines of a file; what follows the last newline was being written when the run was killed, and is cut off."""
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)
    return content[:whole].decode("utf-8").split("\n")[:-1]
