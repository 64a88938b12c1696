"""A sweep for real: cells side by side, one that fails, and what is run again."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient

from tests import warm

pytestmark = pytest.mark.slow
SMALL = {
    "trainer.max_steps": 2,
    "trainer.val_check_interval": 2,
    "data.init_args.batch_size": 4,
    "data.init_args.num_val_prompts": 4,
    "data.init_args.val_batch_size": 4,
}


def sweep_file(folder: Path, methods: dict[str, object], seeds: tuple[int, ...] = (0, 1), **values: object) -> Path:
    path = folder / "small.yaml"
    content = {"name": "small", "recipes": ["quickstart", "ablations/cell"], "seeds": list(seeds), "methods": methods}
    path.write_text(yaml.safe_dump({**content, "values": {**SMALL, **values}}))
    return path


def sweep(folder: Path, *options: str) -> tuple[int, str]:
    done = warm.run(["simct_pl", "sweep", "--recipe", "small.yaml", "--jobs", "2", *options], folder)
    return done.returncode, done.stdout + done.stderr


def results(folder: Path) -> list[str]:
    return sorted(str(path.parent.relative_to(folder)) for path in (folder / "runs/sweeps/small").rglob("result.json"))


def test_cells_run_fail_resume_and_are_reported(tmp_path: Path) -> None:
    broken = {"values": {"model.init_args.chunk_tokens": "many"}}
    methods: dict[str, object] = {name: {"recipes": [f"ablations/{name}"]} for name in ("simct_paper", "seqkd")}
    sweep_file(tmp_path, {**methods, "broken": broken}, (3,))
    code, output = sweep(tmp_path)
    assert code == 2
    assert "1 of 3 cells failed: broken, seed 3" in " ".join(output.split())
    assert "chunk_tokens" in output, "the tail of the log says why"
    assert results(tmp_path) == [f"runs/sweeps/small/{method}/seed3" for method in sorted(methods)]
    client = MlflowClient(f"sqlite:///{tmp_path}/runs/mlflow.db")
    (experiment,) = [e.experiment_id for e in client.search_experiments() if e.name == "simct_pl"]
    parent, *others = client.search_runs([experiment], "tags.`simct.sweep` = 'small'")
    assert not others
    assert parent.info.status == "FAILED"
    children = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    assert sorted(run.info.run_name for run in children) == [f"{method}, seed 3" for method in sorted(methods)]
    assert len({run.data.metrics["eval/loss"] for run in children}) == 2

    sweep_file(tmp_path, methods, (3,))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("result.json")}
    code, output = sweep(tmp_path)
    assert (code, "2 of them finished" in output) == (0, True)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("result.json")} == before
    assert len(client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")) == 2
    report = warm.run(["simct_pl", "report", "--sweep", "small", "--baseline", "simct_paper"], tmp_path)
    assert "seqkd" in report.stdout
    assert report.returncode == 0


def processes_of(folder: Path) -> list[str]:
    """The ids of those that name the folder in their command, as the server of a sweep's cells does."""
    return subprocess.run(["pgrep", "-f", str(folder)], capture_output=True, text=True, check=False).stdout.split()


def wait_until(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.1)


def test_a_sweep_that_is_ended_ends_its_cells(tmp_path: Path) -> None:
    sweep_file(tmp_path, {"long": None}, **{"trainer.max_steps": 100_000, "data.init_args.num_train_batches": 100_000})
    log = tmp_path / "runs/sweeps/small/long/seed0/log.txt"
    other = tmp_path / "runs/sweeps/small/long/seed1/result.json"  # of a cell that waits, and was another once
    other.parent.mkdir(parents=True)
    other.write_text('{"key": "of other values"}')
    command = ["simct_pl", "sweep", "--recipe", "small.yaml", "--jobs", "1"]
    with warm.start(command, tmp_path, tmp_path / "printed.txt") as process:
        wait_until(lambda: bool(list(tmp_path.rglob("*.jsonl"))), 300)
        assert log.is_file()
        assert processes_of(tmp_path), "else nothing is shown by there being none afterwards"
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) != 0
    assert results(tmp_path) == ["runs/sweeps/small/long/seed1"]
    assert "0 of them finished, 1 with other recipes than now" in (tmp_path / "printed.txt").read_text()
    wait_until(lambda: not processes_of(tmp_path), 60)
    assert processes_of(tmp_path) == []


def test_the_list_says_what_is_open(tmp_path: Path) -> None:
    sweep_file(tmp_path, {"a": None, "b": None})
    code, output = sweep(tmp_path, "--list")
    assert code == 0
    assert output.count("open") == 4
    assert json.dumps("b, seed 1")[1:-1] in output
