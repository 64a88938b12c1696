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


def journal_of(folder: Path, num: int = 4, num_sent: int = 0) -> Path:
    """The path of a journal with a record a step, of which some are confirmed."""
    journal = Journal.begin(folder, DESTINATION)
    for step in range(num):
        journal.add(metrics(step))
    if num_sent:
        journal.confirm("run", num_sent)
    journal.close()
    return journal.path


DAMAGED_LINES = [
    b'{"kind": "metrics", "time_ms": 0, "step": 1, "val\xff\xfes": {"loss": 0.5}}',
    b"\x00" * 40,
    b"",
    b'{"kind": "metrics", "time_m',
    b"[1, 2]",
    b"3",
    b"{}",
    b'{"kind": ["metrics"]}',
    b'{"kind": "of another version"}',
    b'{"kind": "metrics", "time_ms": 0, "step": "1", "values": {}}',
    b'{"kind": "metrics", "time_ms": 0, "step": 1, "values": [1]}',
    b'{"kind": "text", "file": "f"}',
    b"[" * 100_000,
]


@pytest.mark.parametrize("num_sent", [0, 1, 3])
@pytest.mark.parametrize("line", DAMAGED_LINES, ids=range(len(DAMAGED_LINES)))
def test_a_damaged_line_costs_its_record_and_no_other(tmp_path: Path, line: bytes, num_sent: int) -> None:
    path = journal_of(tmp_path, num_sent=num_sent)
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([*lines[:2], line, *lines[3:]]))  # the record of step 1
    with pytest.warns(UserWarning, match=r"jsonl is damaged: 1 of its 4 records"):
        journal = Journal(path)
    steps = [record.get("step") for record in journal.pending() if record["kind"] != "lost"]
    assert steps == [step for step in range(num_sent, 4) if step != 1]
    journal.add(metrics(1))  # a resumed run logs it again
    journal.add(metrics(2))
    journal.confirm("run", len(journal.pending()))
    journal.close()
    with pytest.warns(UserWarning, match="is damaged"):
        again = Journal(path)
    assert (again.pending(), again.num_sent) == ([], 5)


@pytest.mark.parametrize(
    "receipt",
    [b"", b"{", b"\xff\xfe", b"[]", b"3", b"null", b"{}", b'{"run_id": "run"}', b'{"run_id": 3, "num_sent": 1}']
    + [b'{"run_id": "run", "num_sent": %s}' % value for value in (b'"1"', b"-1", b"1.5", b"null", b"true")]
    + [b"[" * 100_000],
)
def test_without_a_receipt_that_can_be_read_everything_is_sent_again(tmp_path: Path, receipt: bytes) -> None:
    path = journal_of(tmp_path, num_sent=2)
    path.with_suffix(".json").write_bytes(receipt)
    with pytest.warns(UserWarning, match=r"json cannot be read .*sent again"):
        journal = Journal(path)
    assert ([record["step"] for record in journal.pending()], journal.run_id) == ([0, 1, 2, 3], None)
    journal.confirm("another", 4)
    journal.close()
    assert Journal(path).run_id == "another"


def test_a_receipt_of_more_records_than_there_are_skips_none_that_come_later(tmp_path: Path) -> None:
    path = journal_of(tmp_path, num=2)
    path.with_suffix(".json").write_text('{"run_id": "run", "num_sent": 9}')
    journal = Journal(path)
    journal.add(metrics(7))
    journal.confirm("run", 1)
    journal.close()
    again = Journal(path)
    again.add(metrics(8))
    assert [record["step"] for record in again.pending()] == [8]


@pytest.mark.parametrize(
    "first",
    [b"", b"\xff", b"{", b"[]", b"null", b'{"tracking_uri": "u"}', b'{"tracking_uri": 1, "experiment_name": "e", '
     b'"run_name": "r"}', b"[" * 100_000],
)  # fmt: skip
def test_a_journal_without_a_destination_is_warned_about_and_a_new_one_begun(tmp_path: Path, first: bytes) -> None:
    path = journal_of(tmp_path)
    path.write_bytes(b"\n".join([first, *path.read_bytes().split(b"\n")[1:]]))
    with pytest.raises(TrackingError, match=rf"{path.name} is no journal"):
        Journal(path)
    with pytest.warns(UserWarning, match="goes on with a new journal"):
        assert Journal.newest(tmp_path) is None
    assert path.exists()


def test_a_journal_that_cannot_be_opened_is_no_reason_to_stop(tmp_path: Path) -> None:
    (tmp_path / "9.jsonl").mkdir()
    with pytest.warns(UserWarning, match=r"9.jsonl cannot be opened"):
        assert Journal.newest(tmp_path) is None
    (tmp_path / "file").touch()
    with pytest.raises(TrackingError, match="cannot be written"):
        Journal.begin(tmp_path / "file/tracking", DESTINATION)


def test_a_journal_in_use_is_never_gone_around(tmp_path: Path) -> None:
    journal = Journal.begin(tmp_path, DESTINATION)
    with pytest.raises(TrackingError, match="in use"):
        Journal.newest(tmp_path)
    journal.close()
