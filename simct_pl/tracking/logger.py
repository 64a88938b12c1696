"""RunLogger: MLflow that never holds a run up. What is logged goes into the run's journal; a thread sends it on.

A server that is down, slow or locked costs the run nothing: the thread tries again, less often the longer it fails.
What is left at the end stays in the journal for `python -m simct_pl upload-metrics RUN_FOLDER`.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from argparse import Namespace
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger, rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn
from typing_extensions import override

from simct_pl.errors import TrackingError
from simct_pl.tracking.journal import Destination, Journal, Record
from simct_pl.tracking.run_info import RunInfoReader
from simct_pl.tracking.upload import Uploader

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 300.0  # seconds between attempts on a server that does not answer
COLLECTING = 2.0  # seconds in which records gather, to be sent in one request
EXPERIMENT, UNNAMED = "simct_pl", "unnamed"
TRACKING_URI = "sqlite:///runs/mlflow.db"
TAGS_VARIABLE = "MLFLOW_RUN_CONTEXT"  # MLflow's own: tags of the runs that a process begins, as JSON


class RunLogger(Logger, RunInfoReader):
    """Logs to MLflow through a journal, which begins with the recipe that it is told.

    Args:
        folder: of the journal; by default `tracking` in the run's folder.
        tracking_uri: of the server or database. experiment_name, run_name: as MLflow shows them; a run of recipes is
            named after them.
        artifact_location: folder of the experiment's artifacts; by default beside a local database, or the server's.
        patience: seconds that the end of a fit waits for the server.

    The run gets the tags that MLflow's environment variable MLFLOW_RUN_CONTEXT holds, and its mlflow.runName for a
    name if that is among them.

    Raises:
        TrackingError: if the variable holds anything else.
    """

    def __init__(
        self,
        folder: str | None = None,
        tracking_uri: str = TRACKING_URI,
        experiment_name: str = EXPERIMENT,
        run_name: str | None = None,
        artifact_location: str | None = None,
        patience: float = 30.0,
    ) -> None:
        super().__init__()
        self._folder, self.patience = Path(folder) if folder else None, patience
        tags = run_tags()
        name = tags.pop("mlflow.runName", run_name) or UNNAMED
        self.destination = Destination(tracking_uri, experiment_name, name, artifact_location, tags=tags)
        self._journal: Journal | None = None
        self._sender: Sender | None = None
        self._running = self._goes_on = False

    def fill_in(self, folder: Path, run_name: str, artifact_location: str) -> None:
        """Take from the run what the recipe left open. artifact_location: of the default database."""
        self._folder = self._folder or folder
        if self.destination.run_name == UNNAMED:
            self.destination = replace(self.destination, run_name=run_name)
        if self.destination.tracking_uri == TRACKING_URI and self.destination.artifact_location is None:
            self.destination = replace(self.destination, artifact_location=artifact_location)

    @property
    def folder(self) -> Path:
        """Of the journal.

        Raises:
            TrackingError: if nobody has said where it is.
        """
        if self._folder is None:
            raise TrackingError("RunLogger has no folder; outside of a recipe give it one: RunLogger(folder=...).")
        return self._folder

    @contextmanager
    def going_on(self) -> Iterator[None]:
        """What is finalized in here is not the run's end, and waits for no server; but for what fails."""
        self._goes_on = True
        try:
            yield
        finally:
            self._goes_on = False

    @rank_zero_only
    def continue_run(self, from_checkpoint: bool) -> None:
        """Go on with the newest journal of the folder, and with its run in MLflow. Without a checkpoint only if that
        run was cut off before it had one, with the same recipe.
        """
        journal = Journal.newest(self.folder)
        if journal is None:
            return
        # A run without a checkpoint begins anew: it logs the same steps again, which a journal that ended has already.
        if from_checkpoint or (not journal.ended and journal.destination.recipe == self.recipe):
            self._journal = journal
        else:
            journal.close()

    @rank_zero_only
    def end(self) -> None:
        """The run has come to its end: nothing goes on from here without a checkpoint."""
        if self._journal is not None:
            self._journal.end()

    @property
    def journal(self) -> Journal:
        if self._journal is None:
            self._journal = Journal.begin(self.folder, replace(self.destination, recipe=self.recipe))
        return self._journal

    @property
    @override
    def name(self) -> str:
        return self.destination.experiment_name

    @property
    @override
    def version(self) -> str | None:
        """MLflow's run id; None until the server has given one."""
        return self._journal.run_id if self._journal else None

    run_id = version

    @property
    @rank_zero_experiment
    def experiment(self) -> ArtifactClient:
        """What MLFlowLogger's `experiment` is used for, by way of the journal."""
        return ArtifactClient(self)

    @override
    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        values = {name: float(value) for name, value in metrics.items()}
        self.add({"kind": "metrics", "time_ms": _now_ms(), "step": step or 0, "values": values})

    @override
    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace) -> None:
        values = params if isinstance(params, dict) else vars(params)
        self.add({"kind": "params", "values": {name: str(value)[:500] for name, value in values.items()}})

    def add(self, record: Record) -> None:
        """Write a record down and wake the thread that sends it."""
        # The first record after a pause (the start, or a validation behind the fit) sets the run going in MLflow.
        if not self._running:
            self._running = True
            self.journal.add({"kind": "status", "status": "RUNNING"})
        self.journal.add(record)
        if self._sender is None:
            self._sender = Sender(self.journal)
            self._sender.start()
        self._sender.wake()
        self._sender.complain()

    @override
    def save(self) -> None:
        if self._journal is not None:
            self._journal.flush()

    @override
    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Wait for the server to have everything; say what to do if it has not. Lightning does this after each fit and
        each validation, unless it is inside `going_on`; what is logged afterwards sets the run going again.
        """
        if (self._goes_on and status != "failed") or not self._running or self._sender is None:
            return
        self._running = False
        self.journal.add({"kind": "status", "status": "FAILED" if status == "failed" else "FINISHED"})
        sender, self._sender = self._sender, None
        error = sender.finish(self.patience)
        sender.complain()
        if error:
            rank_zero_warn(
                f"{self.destination.tracking_uri} has not received {len(self.journal.pending())} records ({error}). "
                f"They are in {self.journal.path}; send them with: python -m simct_pl upload-metrics "
                f"{self.folder.parent}"
            )


class ArtifactClient:
    """The methods of MlflowClient that callbacks use, with their signatures; the run is the logger's own."""

    def __init__(self, logger: RunLogger) -> None:
        self._logger = logger

    def log_text(self, run_id: str | None, text: str, artifact_file: str) -> None:
        self._logger.add({"kind": "text", "file": artifact_file, "text": text})

    def log_table(self, run_id: str | None, data: dict[str, Any], artifact_file: str) -> None:
        self._logger.add({"kind": "table", "file": artifact_file, "columns": data})

    def log_artifact(self, run_id: str | None, local_path: str) -> None:
        # With its content, because the same record is not sent twice, and a picture may be drawn again.
        digest = hashlib.blake2b(Path(local_path).read_bytes(), digest_size=16).hexdigest()
        self._logger.add({"kind": "artifact", "path": str(Path(local_path).absolute()), "digest": digest})


class Sender(threading.Thread):
    """Sends a journal's records as they come; a daemon, so that a server that hangs cannot keep a process alive."""

    def __init__(self, journal: Journal) -> None:
        super().__init__(name="tracking", daemon=True)
        self._journal, self._uploader = journal, Uploader(journal)
        self._wake, self._ending, self._given_up = threading.Event(), threading.Event(), threading.Event()
        self._error: str | None = None

    def wake(self) -> None:
        self._wake.set()

    def complain(self) -> None:
        """Warn about what went wrong since the last call; from the run's own thread, where warnings belong."""
        while self._uploader.complaints:
            rank_zero_warn(self._uploader.complaints.pop(0))

    @override
    def run(self) -> None:
        pause = FIRST_PAUSE
        while not self._given_up.is_set():
            self._wake.wait()
            self._wake.clear()
            error = self._uploader.send()
            # It went well: end, if that was all, or let records gather for the next request.
            if error is None:
                self._error, pause = None, FIRST_PAUSE
                if self._ending.is_set() and not self._journal.pending():
                    return
                self._ending.wait(COLLECTING)
                continue
            # It did not: say so once an outage, and try again less and less often.
            if self._error is None:
                self._uploader.complaints.append(
                    f"The tracking server does not answer ({error}). The run goes on; what it logs waits in "
                    f"{self._journal.path}."
                )
            self._error = error
            self._pause(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
            self._wake.set()

    def _pause(self, seconds: float) -> None:
        """Wait before the next attempt; at the end of a run not for long."""
        if not self._ending.wait(seconds):
            return
        self._given_up.wait(min(seconds, FIRST_PAUSE))

    def finish(self, patience: float) -> str | None:
        """Send what is left; what still goes wrong after so many seconds. The thread sends nothing afterwards."""
        self._ending.set()
        self.wake()
        self.join(patience)
        if not self.is_alive():
            return None
        self._given_up.set()
        self.wake()
        return self._error or f"it takes more than {patience:.0f} seconds"


def run_tags() -> dict[str, str]:
    """The tags that the environment gives to runs."""
    text = os.environ.get(TAGS_VARIABLE, "{}")
    try:
        tags = json.loads(text)
    except ValueError:
        tags = None
    if not isinstance(tags, dict):
        raise TrackingError(f"{TAGS_VARIABLE} is {text!r:.80}; expected a JSON object of tags, or no such variable.")
    return {str(name): str(value) for name, value in tags.items()}


def set_run_tags(tags: dict[str, str]) -> None:
    """Give tags to the runs that this process begins."""
    os.environ[TAGS_VARIABLE] = json.dumps(tags)


def _now_ms() -> int:
    return int(time.time() * 1000)
