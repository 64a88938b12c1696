"""Journal: everything a run logs, line by line in a file of its folder, and how much of it the tracker has received.

    folder/<began>.jsonl   one record a line, the first of which says where they go
    folder/<began>.json    the tracker's run id, and how many records it has
    folder/<began>.done    there when the run came to its end

The file is what counts: a tracker that is down, or a run that is killed, loses nothing and repeats nothing. What a
damaged disk did to it costs the lines it hit and no more: metrics are not weights, and no reason not to go on.
"""

from __future__ import annotations

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

from simct_pl.errors import TrackingError, first_line
from simct_pl.files.lock import claim
from simct_pl.files.parquet import write_json

Record = dict[str, Any]
# What each kind of record holds. "lost" stands for a line that cannot be read any more: it keeps the others' places,
# which the receipt counts, and is not sent.
KINDS: dict[str, dict[str, type]] = {
    "metrics": {"time_ms": int, "step": int, "values": dict},
    "params": {"values": dict},
    "text": {"file": str, "text": str},
    "table": {"file": str, "columns": dict},
    "artifact": {"path": str},
    "status": {"status": str},
    "lost": {},
}
LOST: Record = {"kind": "lost"}


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

    @classmethod
    def parse(cls, line: bytes) -> Destination:
        """What a journal's first line says.

        Raises:
            ValueError, TypeError: if it is damaged.
        """
        found = cls(**json.loads(line))
        texts = (found.tracking_uri, found.experiment_name, found.run_name, found.artifact_location or "", found.recipe)
        if not all(isinstance(text, str) for text in texts) or not isinstance(found.tags, dict):
            raise TypeError(f"its first line is {line!r:.80}")
        return found


class Journal:
    """One run's records.

    Args:
        path: of the .jsonl file. A last line that was cut short is removed. Lines that are damaged are warned about and
            left out; without a receipt that can be read, everything is sent again, to a new run of the tracker.

    Raises:
        TrackingError: if the file is no journal or its first line is damaged, if it cannot be opened, or if another
            process writes to it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._unwritten: list[Record] = []
        self._file = _claimed(path)
        try:
            first, *lines = _whole_lines(path) or [b""]
            self.destination = Destination.parse(first)
        except (OSError, ValueError, TypeError, RecursionError) as error:
            self.close()
            raise TrackingError(
                f"{path} is no journal of a run: {first_line(error)}. Move it out of the folder; what it holds is lost "
                "to the tracker."
            ) from error
        records = [_read_record(line) for line in lines]
        if num_lost := sum(record is LOST for record in records):
            rank_zero_warn(
                f"{path} is damaged: {num_lost} of its {len(records)} records cannot be read and are left out."
            )
        # A resumed run logs again what it had logged since its checkpoint: known by what is in the file, not by memory.
        self._seen = {record_key(record) for record in records} - {None}
        self.run_id, num_sent = _read_receipt(self._receipt)
        self.num_sent = min(num_sent, len(records))
        self._pending = records[self.num_sent :]

    @classmethod
    def begin(cls, folder: Path, destination: Destination) -> Journal:
        """A new journal, named by the time, so that the last one is the newest."""
        path = folder / f"{time.strftime('%Y%m%d-%H%M%S')}-{time.time_ns() % 10**9:09d}.jsonl"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with open(path, "x", encoding="utf-8") as file:
                file.write(json.dumps(asdict(destination)) + "\n")
        except OSError as error:
            raise TrackingError(f"{path} cannot be written: {error}. Give the run another folder.") from error
        return cls(path)

    @classmethod
    def newest(cls, folder: Path) -> Journal | None:
        """The newest journal of a folder; None if there is none, or it is damaged so far that none can go on with it.

        Raises:
            TrackingError: if another process writes to it.
        """
        paths = sorted(folder.glob("*.jsonl"))
        if not paths:
            return None
        try:
            return cls(paths[-1])
        except TrackingError as error:
            if isinstance(error.__cause__, BlockingIOError):
                raise
            rank_zero_warn(f"{error} The run goes on with a new journal, and a new run of the tracker.")
            return None

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
            # What a full disk did not take goes first, so that the file keeps the order.
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
        # Half a line would join the next one: both would be lost.
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
    """What makes a record the same as another, its time left out; None for a status, which may come again, and for
    what is lost.

    Metrics are the same if their step and names are: on devices whose sums depend on the order, a repeated step may
    give slightly other values, and a curve with two values at a step is worse than one.
    """
    if record["kind"] in ("status", "lost"):
        return None
    content = {name: value for name, value in record.items() if name != "time_ms"}
    if record["kind"] == "metrics":
        content["values"] = sorted(record["values"])
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).digest()


def _claimed(path: Path) -> FileIO:
    """The file, open to be added to; other processes are kept out: two would send the same records twice."""
    try:
        file = open(path, "ab", buffering=0)  # noqa: SIM115 - open as long as the run
    except OSError as error:
        raise TrackingError(f"{path} cannot be opened: {error}. Give the run another folder.") from error
    try:
        claim(file)
    except BlockingIOError as error:
        file.close()
        raise TrackingError(f"{path} is in use: the run is still going on. Wait for its end.") from error
    return file


def _read_record(line: bytes) -> Record:
    """A line's record; LOST if there is none in it any more."""
    try:
        record = json.loads(line)
        fields = KINDS[record["kind"]]
        is_whole = all(isinstance(record[name], kind) for name, kind in fields.items())
    except (ValueError, KeyError, TypeError, RecursionError):
        return LOST
    return record if is_whole and record["kind"] != "lost" else LOST


def _read_receipt(path: Path) -> tuple[str | None, int]:
    """(the tracker's run id, how many records it has)."""
    if not path.exists():
        return None, 0
    try:
        receipt = json.loads(path.read_bytes())
        run_id, num_sent = receipt["run_id"], receipt["num_sent"]
        if isinstance(run_id, str) and type(num_sent) is int and num_sent >= 0:
            return run_id, num_sent
        why = f"it holds {receipt!r:.80}"
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        why = first_line(error)
    rank_zero_warn(f"{path} cannot be read ({why}): everything is sent again, to a new run of the tracker.")
    return None, 0


def _whole_lines(path: Path) -> list[bytes]:
    """The lines of a file; what follows the last newline was being written when the run was killed, and is cut off."""
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)
    return content[:whole].split(b"\n")[:-1]
