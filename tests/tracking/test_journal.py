"""The journal: nothing lost, nothing twice, whatever moment the process ends at."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import pytest

from simct_pl.errors import TrackingError
from simct_pl.tracking.journal import Destination, Journal

DESTINATION = Destination("sqlite:///x.db", "e", "r")


def metrics(step: int, time_ms: int = 0, **values: float) -> dict[str, Any]:
    return {"kind": "metrics", "time_ms": time_ms, "step": step, "values": values or {"loss": 0.5}}


def test_records_come_back(tmp_path: Path) -> None:
    journal = Journal.begin(tmp_path, DESTINATION)
    records = [metrics(1, a=float("inf")), {"kind": "text", "file": "f", "text": "line\nπ\u2028"}]
    for record in records:
        journal.add(record)
    journal.close()
    again = Journal.newest(tmp_path)
    assert again is not None
    assert (again.pending(), again.destination, again.run_id) == (records, DESTINATION, None)


def test_what_is_confirmed_is_not_pending_any_more(tmp_path: Path) -> None:
    journal = Journal.begin(tmp_path, DESTINATION)
    for step in range(3):
        journal.add(metrics(step))
    journal.confirm("run", 2)
    journal.add(metrics(3))
    assert [record["step"] for record in journal.pending()] == [2, 3]
    journal.close()
    again = Journal(journal.path)
    assert ([record["step"] for record in again.pending()], again.run_id) == ([2, 3], "run")


def test_a_repeated_step_is_written_once(tmp_path: Path) -> None:
    journal = Journal.begin(tmp_path, DESTINATION)
    journal.add(metrics(1, 10))
    journal.close()
    again = Journal(journal.path)
    again.add(metrics(1, 99))
    again.add(metrics(1, 99, other=1.0))  # another group of the same step
    again.add(metrics(2, 99))
    assert [(r["step"], r["time_ms"]) for r in again.pending()] == [(1, 10), (1, 99), (2, 99)]
    for _ in range(2):
        again.add({"kind": "status", "status": "RUNNING"})
    assert len(again.pending()) == 5


@pytest.mark.parametrize("num_cut", [1, 5, 40])
def test_a_last_line_cut_short_is_dropped_and_written_again(tmp_path: Path, num_cut: int) -> None:
    journal = Journal.begin(tmp_path, DESTINATION)
    journal.add(metrics(1))
    journal.add(metrics(2))
    journal.close()
    journal.path.write_bytes(journal.path.read_bytes()[:-num_cut])
    again = Journal(journal.path)
    assert [record["step"] for record in again.pending()] == [1]
    again.add(metrics(2))
    again.close()
    assert [record["step"] for record in Journal(journal.path).pending()] == [1, 2]


def test_a_full_disk_delays_records_and_cuts_no_line(tmp_path: Path) -> None:
    journal = Journal.begin(tmp_path, DESTINATION)
    journal.add(metrics(0))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (journal.path.stat().st_size + 10, hard))
    try:
        with pytest.warns(UserWarning, match="waits in memory"):
            journal.add(metrics(1))
        journal.add(metrics(2))  # warned about once
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [record["step"] for record in journal.pending()] == [0]
    assert journal.path.read_bytes().endswith(b"\n")
    journal.add(metrics(3))
    journal.close()
    assert [record["step"] for record in Journal(journal.path).pending()] == [0, 1, 2, 3]


def test_two_processes_do_not_share_a_journal(tmp_path: Path) -> None:
    journal = Journal.begin(tmp_path, DESTINATION)
    with pytest.raises(TrackingError, match="in use"):
        Journal(journal.path)
    journal.close()
    Journal(journal.path).close()


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "x"}\n')
    with pytest.raises(TrackingError, match="no journal"):
        Journal(tmp_path / "a.jsonl")
    (tmp_path / "b.jsonl").write_text("")
    with pytest.raises(TrackingError, match="no journal"):
        Journal(tmp_path / "b.jsonl")
