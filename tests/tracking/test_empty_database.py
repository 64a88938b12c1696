"""A database that begins as a copy is what MLflow would have made."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from mlflow import MlflowClient

from simct_pl.tracking.empty_database import kept_database, take_empty
from simct_pl.tracking.upload import make_database


def schema(path: Path) -> list[tuple[str, str]]:
    with closing(sqlite3.connect(path)) as database:
        return database.execute("SELECT name, sql FROM sqlite_master ORDER BY name").fetchall()


def made(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder.mkdir()
    monkeypatch.chdir(folder)
    make_database(f"sqlite:///{folder}/mlflow.db")
    return folder / "mlflow.db"


@pytest.mark.slow
def test_the_second_database_is_as_the_first_but_for_where_it_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIMCT_PL_CACHE", str(tmp_path / "cache"))
    first = made(tmp_path / "first", monkeypatch)
    assert kept_database().is_file()
    made_by_mlflow = kept_database().stat().st_mtime_ns
    second = made(tmp_path / "second", monkeypatch)
    assert kept_database().stat().st_mtime_ns == made_by_mlflow, "it was made again"
    assert schema(second) == schema(first)
    assert len(schema(first)) > 20
    for database in (first, second):
        client = MlflowClient(f"sqlite:///{database}")
        (experiment,) = client.search_experiments()
        assert (experiment.experiment_id, experiment.name) == ("0", "Default")
        assert str(database.parent) in experiment.artifact_location
        run = client.create_run(client.create_experiment("own"))
        client.log_metric(run.info.run_id, "loss", 1.0)
        assert client.get_run(run.info.run_id).data.metrics == {"loss": 1.0}
    kept_database().write_bytes(b"no database at all" * 100)
    assert not take_empty(tmp_path / "third.db")
    assert not (tmp_path / "third.db").exists()
    fourth = schema(made(tmp_path / "fourth", monkeypatch))
    assert [name for name, _ in fourth] == [name for name, _ in schema(first)]


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SIMCT_PL_CACHE", str(tmp_path / "file" / "cache"))
    assert not take_empty(tmp_path / "new.db")
    assert made(tmp_path / "folder", monkeypatch).is_file()
