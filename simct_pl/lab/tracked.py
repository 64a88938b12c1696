"""A sweep in MLflow: one parent run, of which every cell's run is a child."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from simct_pl.tracking.logger import EXPERIMENT
from simct_pl.tracking.upload import experiment_of, make_database

if TYPE_CHECKING:
    from mlflow import MlflowClient


@dataclass(frozen=True)
class SweepRun:
    """The parent run."""

    client: MlflowClient
    run_id: str

    @classmethod
    def open(cls, name: str, sweep_file: Path, folder: Path) -> SweepRun:
        """Begin the sweep's run, or go on with the one that its folder remembers; the sweep file is its artifact."""
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        from simct_pl.config.lightning_cli import artifact_location
        from simct_pl.tracking.logger import TRACKING_URI

        make_database(TRACKING_URI)
        client, remembered = MlflowClient(TRACKING_URI), folder / "sweep.json"
        try:
            run_id = str(json.loads(remembered.read_text(encoding="utf-8"))["run_id"])
            client.update_run(run_id, status="RUNNING")
        # MLflow's database may have been removed since; a file that cannot be read costs the sweep its old parent run.
        except (OSError, ValueError, KeyError, TypeError, RecursionError, MlflowException):
            experiment_id = experiment_of(client, EXPERIMENT, artifact_location())
            run_id = client.create_run(experiment_id, run_name=name, tags={"simct.sweep": name}).info.run_id
            folder.mkdir(parents=True, exist_ok=True)
            remembered.write_text(json.dumps({"run_id": run_id}) + "\n", encoding="utf-8")
        client.log_artifact(run_id, str(sweep_file))
        return cls(client, run_id)

    @property
    def child_tags(self) -> dict[str, str]:
        return {"mlflow.parentRunId": self.run_id}

    def close(self, failed: Sequence[str]) -> None:
        self.client.set_terminated(self.run_id, "FAILED" if failed else "FINISHED")
