"""RunLogger against MLflow's own database: down at the start, locked in the middle, killed and continued."""

from __future__ import annotations

import json
import math
import re
import sqlite3
import warnings
from pathlib import Path

import pytest
from mlflow import MlflowClient

from simct_pl.commands.main import main
from simct_pl.tracking.logger import RunLogger, Sender
from simct_pl.tracking.run_info import RunInfo


def logger(folder: Path, patience: float = 60.0) -> RunLogger:
    return RunLogger(
        str(folder / "run/tracking"),
        f"sqlite:///{folder}/store/mlflow.db",
        run_name="r",
        artifact_location=(folder / "artifacts").as_uri(),
        patience=patience,
    )


def stored(folder: Path) -> tuple[MlflowClient, str, dict[str, list[tuple[int, float]]]]:
    """(client, id of the only run, its metrics as (step, value))."""
    client = MlflowClient(f"sqlite:///{folder}/store/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("simct_pl").experiment_id])
    histories = {
        name: sorted((point.step, point.value) for point in client.get_metric_history(run.info.run_id, name))
        for name in run.data.metrics
    }
    return client, run.info.run_id, histories


@pytest.mark.slow
def test_a_server_that_is_down_at_the_start_gets_everything_later(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "store").touch()  # a file, so the database's folder cannot be made
    down = logger(tmp_path, patience=3.0)
    with warnings.catch_warnings(record=True) as warned:  # that it does not answer may be said at any of these
        warnings.simplefilter("always")
        for step in range(1, 4):
            down.log_metrics({"loss": 0.1 * step}, step)
        down.log_hyperparams({"lr": 1e-3})
        down.experiment.log_text(down.run_id, "a: 1", "recipe.yaml")
        down.experiment.log_table(down.run_id, {"step": [3], "text": ["ü"]}, "samples.json")
        sender = down._sender
        assert sender is not None
        down.finalize("success")
    assert re.search(r"has not received 8 records .*upload-metrics", str(warned[-1].message))
    sender.join(60)  # its last attempt, when the machine is slow
    assert down.version is None
    assert main(["upload-metrics", str(tmp_path / "run")]) == 2
    assert "still going on" in capsys.readouterr().err
    down.journal.close()
    assert main(["upload-metrics", str(tmp_path / "run")]) == 2
    assert "8 records wait" in capsys.readouterr().err
    (tmp_path / "store").unlink()
    assert main(["upload-metrics", str(tmp_path / "run")]) == 0
    assert main(["upload-metrics", str(tmp_path / "run")]) == 0
    assert ["sent 8" in line for line in capsys.readouterr().err.splitlines() if "sent" in line] == [True, False]
    client, run_id, histories = stored(tmp_path)
    assert histories == {"loss": [(step, 0.1 * step) for step in range(1, 4)]}
    assert client.get_run(run_id).data.params == {"lr": "0.001"}
    assert client.get_run(run_id).info.status == "FINISHED"
    assert {artifact.path for artifact in client.list_artifacts(run_id)} == {"recipe.yaml", "samples.json"}


@pytest.mark.slow
def test_a_killed_run_goes_on_in_the_same_run_without_repeating_a_step(tmp_path: Path) -> None:
    first = logger(tmp_path)
    for step in range(1, 4):
        first.log_metrics({"loss": 0.1 * step, "bad": math.nan}, step)
    first.finalize("failed")
    run_id = first.version
    first.journal.close()
    receipt = first.journal.path.with_suffix(".json")
    # Killed after MLflow had received the last two records, in front of writing that down.
    receipt.write_text(json.dumps({**json.loads(receipt.read_text()), "num_sent": 1}))
    again = logger(tmp_path)
    again.continue_run(from_checkpoint=True)
    for step in range(3, 6):
        again.log_metrics({"loss": 0.1 * step, "bad": math.nan}, step)
    again.finalize("success")
    client, stored_id, histories = stored(tmp_path)
    assert stored_id == again.version == run_id
    assert histories["loss"] == [(step, 0.1 * step) for step in range(1, 6)]
    assert [step for step, value in histories["bad"] if math.isnan(value)] == [1, 2, 3, 4, 5]
    assert client.get_run(stored_id).info.status == "FINISHED"


@pytest.mark.slow
def test_a_locked_database_holds_nothing_up_and_misses_nothing(tmp_path: Path) -> None:
    logs = logger(tmp_path)
    logs.log_metrics({"loss": 1.0}, 1)
    logs.finalize("success")  # the database is there now
    lock = sqlite3.connect(tmp_path / "store/mlflow.db", isolation_level=None)
    lock.execute("BEGIN EXCLUSIVE")
    logs.patience = 0.1
    logs.log_metrics({"loss": 2.0}, 2)
    with pytest.warns(UserWarning, match="upload-metrics"):
        logs.finalize("success")
    lock.execute("ROLLBACK")
    lock.close()
    logs.journal.close()
    again = logger(tmp_path)
    again.continue_run(from_checkpoint=True)
    again.log_metrics({"loss": 3.0}, 3)
    again.finalize("success")
    assert stored(tmp_path)[2] == {"loss": [(1, 1.0), (2, 2.0), (3, 3.0)]}


@pytest.mark.slow
def test_a_record_that_the_server_refuses_does_not_hold_up_the_rest(tmp_path: Path) -> None:
    logs = logger(tmp_path)
    logs.log_hyperparams({"commit": "a"})
    logs.log_hyperparams({"commit": "b"})  # MLflow does not change a parameter
    logs.log_metrics({"loss": 1.0}, 1)
    with pytest.warns(UserWarning, match="will not take"):
        logs.finalize("success")
    client, run_id, histories = stored(tmp_path)
    assert histories == {"loss": [(1, 1.0)]}
    assert client.get_run(run_id).data.params == {"commit": "a"}


@pytest.mark.slow
def test_a_validation_in_front_of_a_fit_waits_for_no_server(tmp_path: Path) -> None:
    logs = logger(tmp_path)
    with logs.going_on():
        logs.log_metrics({"loss": 1.0}, 0)
        logs.finalize("success")
    assert [record["kind"] for record in logs.journal.pending()][-1:] in (["metrics"], [])  # no status behind it
    assert logs._sender is not None
    logs.log_metrics({"loss": 2.0}, 1)
    logs.finalize("success")
    assert logs._sender is None
    client, run_id, histories = stored(tmp_path)
    assert histories == {"loss": [(0, 1.0), (1, 2.0)]}
    assert client.get_run(run_id).info.status == "FINISHED"


def test_what_fails_in_front_of_a_fit_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sender, "start", lambda self: None)
    monkeypatch.setattr(Sender, "finish", lambda self, patience: None)
    logs = logger(tmp_path)
    with logs.going_on():
        logs.log_metrics({"loss": 1.0}, 0)
        logs.finalize("failed")
    assert [record.get("status") for record in logs.journal.pending()] == ["RUNNING", None, "FAILED"]


def test_a_picture_that_was_drawn_again_is_sent_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sender, "start", lambda self: None)
    logs, picture = logger(tmp_path), tmp_path / "curve.png"
    for content in (b"a", b"a", b"b"):
        picture.write_bytes(content)
        logs.experiment.log_artifact(logs.run_id, str(picture))
    assert [record["kind"] for record in logs.journal.pending()] == ["status", "artifact", "artifact"]


def test_upload_needs_a_runs_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["upload-metrics", str(tmp_path)]) == 2
    assert "no journal" in capsys.readouterr().err


def test_a_new_run_in_an_old_folder_has_a_journal_of_its_own(tmp_path: Path) -> None:
    for _ in range(2):
        logs = logger(tmp_path)
        logs.journal.add({"kind": "status", "status": "RUNNING"})
        logs.journal.close()
    assert len(list((tmp_path / "run/tracking").glob("*.jsonl"))) == 2


def test_without_a_checkpoint_only_a_run_that_was_cut_off_is_continued(tmp_path: Path) -> None:
    def began(recipe: str) -> RunLogger:
        logs = logger(tmp_path)
        logs.run_info = RunInfo("r", recipe, {}, None)
        logs.continue_run(from_checkpoint=False)
        return logs

    first = began("a: 1")
    path = first.journal.path
    for recipe, same in (("a: 2", False), ("a: 1", True)):
        first.journal.close()
        again = began(recipe)
        assert (again._journal is not None and again.journal.path == path) == same
        if same:
            again.end()
            again.journal.close()
    assert began("a: 1")._journal is None
    late = logger(tmp_path)
    late.continue_run(from_checkpoint=True)
    assert late.journal.path == path
