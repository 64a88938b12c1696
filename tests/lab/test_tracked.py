"""What a sweep's folder remembers of it, and what it costs when that cannot be read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from mlflow import MlflowClient

from simct_pl.commands.sweep import is_finished
from simct_pl.lab.sweep_file import Cell
from simct_pl.lab.tracked import SweepRun

DAMAGED = [b"", b"{", b"[]", b"null", b"{}", b'{"run_id": 3}', b'{"run_id": null}', b"\xff\x00", b"[" * 100_000]


def test_a_sweep_whose_memory_is_damaged_gets_a_new_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    (tmp_path / "s.yaml").write_text("name: s\n")
    folder = tmp_path / "sweep"
    first = SweepRun.open("s", tmp_path / "s.yaml", folder)
    assert SweepRun.open("s", tmp_path / "s.yaml", folder).run_id == first.run_id
    known = {first.run_id}
    for content in DAMAGED:
        (folder / "sweep.json").write_bytes(content)
        run_id = SweepRun.open("s", tmp_path / "s.yaml", folder).run_id
        assert run_id not in known
        assert json.loads((folder / "sweep.json").read_text()) == {"run_id": run_id}
        known.add(run_id)
    assert MlflowClient("sqlite:///runs/mlflow.db").get_run(first.run_id).data.tags["simct.sweep"] == "s"


def test_a_cell_whose_result_is_damaged_is_run_again(tmp_path: Path) -> None:
    cell = Cell("a", 0, (), tmp_path / "a/seed0", "x: 1")
    cell.folder.mkdir(parents=True)
    result = cell.folder / "result.json"
    assert not is_finished(cell)
    result.write_text(json.dumps({"key": cell.key}))
    assert is_finished(cell)
    for content in DAMAGED:
        result.write_bytes(content)
        assert not is_finished(cell)
    result.unlink()
    result.mkdir()
    assert not is_finished(cell)
