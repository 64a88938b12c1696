"""Uploader: a journal's records to MLflow, in order; which were received is remembered, so that none is sent twice.

A record sent just before a crash is sent again. MLflow's databases know metrics by (step, time, value) and keep one.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from simct_pl.tracking.empty_database import keep_empty, take_empty
from simct_pl.tracking.journal import Journal, Record

if TYPE_CHECKING:
    from mlflow import MlflowClient

MAX_METRICS = 1000  # that MLflow takes at once
REFUSALS = ("INVALID_PARAMETER_VALUE", "RESOURCE_ALREADY_EXISTS", "BAD_REQUEST")


class Uploader:
    """Sends one journal. complaints: about what the server refused, for the caller to pass on.

    num_refused: records that the server will never take.
    """

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self.num_refused, self.complaints = 0, list[str]()
        self._client: MlflowClient | None = None

    def send(self) -> str | None:
        """Send everything that is pending; what went wrong, if the server does not answer."""
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        try:
            client = self._connect()
            run_id = self.journal.run_id or self._create_run(client)
            # Each group is confirmed before the next is sent: a crash in between repeats one group at most.
            for group in _groups(self.journal.pending()):
                try:
                    _deliver(client, run_id, group)
                except (MlflowException, FileNotFoundError) as error:
                    # An outage ends the attempt; what the server refuses for good must not hold up the rest.
                    if isinstance(error, MlflowException) and error.error_code not in REFUSALS:
                        raise
                    self.num_refused += len(group)
                    self.complaints.append(f"The tracking server will not take {group!r:.200}: {error}")
                self.journal.confirm(run_id, len(group))
        except (MlflowException, SQLAlchemyError, OSError) as error:
            return f"{type(error).__name__}: {error}".splitlines()[0][:300]
        return None

    def _connect(self) -> MlflowClient:
        from mlflow import MlflowClient

        uri = self.journal.destination.tracking_uri
        if self._client is None:
            make_database(uri)
            self._client = MlflowClient(uri)
        return self._client

    def _create_run(self, client: MlflowClient) -> str:
        destination = self.journal.destination
        experiment_id = experiment_of(client, destination.experiment_name, destination.artifact_location)
        run = client.create_run(experiment_id, run_name=destination.run_name, tags=destination.tags)
        run_id: str = run.info.run_id
        self.journal.confirm(run_id)
        return run_id


def experiment_of(client: MlflowClient, name: str, artifact_location: str | None) -> str:
    """The id of an experiment, which is made if there is none of the name."""
    experiment = client.get_experiment_by_name(name)
    if experiment is not None:
        return str(experiment.experiment_id)
    experiment_id: str = client.create_experiment(name, artifact_location)
    return experiment_id


def make_database(uri: str) -> None:
    """Make a new SQLite file beside its place and link it there: MLflow cannot use one whose making was cut short.

    It is a copy of an empty database that this version of MLflow made before: some forty migrations take seconds.
    """
    from mlflow import MlflowClient

    path = Path(uri.removeprefix("sqlite:///"))
    if not uri.startswith("sqlite:///") or path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}-{time.time_ns()}")
    found = take_empty(fresh)
    MlflowClient(f"sqlite:///{fresh}").search_experiments(max_results=1)
    if not found:
        keep_empty(fresh)
    try:
        os.link(fresh, path)
    except FileExistsError:  # another run was faster
        return
    finally:
        fresh.unlink()


def _groups(records: list[Record]) -> Iterator[list[Record]]:
    """Records to send together: metrics up to MAX_METRICS, anything else alone."""
    # Order is kept: a group ends where it is full, or where something else than metrics comes.
    group: list[Record] = []
    for record in records:
        full = sum(len(r["values"]) for r in group) + len(record.get("values", ())) > MAX_METRICS
        if group and (full or record["kind"] != "metrics"):
            yield group
            group = []
        if record["kind"] == "metrics":
            group.append(record)
        else:
            yield [record]
    if group:
        yield group


def _deliver(client: MlflowClient, run_id: str, group: list[Record]) -> None:
    from mlflow.entities import Metric, Param

    first = group[0]
    if first["kind"] == "lost":  # counted as received, so that those behind it keep their places
        return
    if first["kind"] == "metrics":
        metrics = [
            Metric(name, value, record["time_ms"], record["step"])
            for record in group
            for name, value in record["values"].items()
        ]
        client.log_batch(run_id, metrics=metrics)
    elif first["kind"] == "params":
        client.log_batch(run_id, params=[Param(name, value) for name, value in first["values"].items()])
    elif first["kind"] == "text":
        client.log_text(run_id, first["text"], first["file"])
    elif first["kind"] == "table":
        client.log_table(run_id, first["columns"], first["file"])
    elif first["kind"] == "artifact":
        if not Path(first["path"]).is_file():
            raise FileNotFoundError(f"{first['path']} is gone")
        client.log_artifact(run_id, first["path"])
    elif first["status"] == "RUNNING":
        client.update_run(run_id, status="RUNNING")
    else:
        client.set_terminated(run_id, first["status"])
