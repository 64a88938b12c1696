"""Where a sweep is in MLflow: its parent run, its cells' runs, and the file that says which cells there should be."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import yaml

from simct_pl.errors import RecipeError, TrackingError
from simct_pl.lab.sweep_file import SweepFile

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

PAGE = 1000  # runs that are asked for at once


@dataclass(frozen=True)
class TrackedSweep:
    """A sweep's runs, newest first, and its file's text. notes: what a reader must know."""

    client: MlflowClient
    runs: list[Run]
    file: str
    notes: list[str] = field(default_factory=list)

    @cached_property
    def planned_cells(self) -> list[tuple[str, int]]:
        """Method and seed of every cell of the file, and of every run: a file may have been shortened since."""
        tried = [(run.data.tags["simct.method"], int(run.data.tags["simct.seed"])) for run in reversed(self.runs)]
        try:
            sweep = SweepFile.parse("The sweep's file", yaml.safe_load(self.file))
        except (RecipeError, yaml.YAMLError) as error:
            self.notes.append(f"Cells that did not begin are not known: {error}")
            return list(dict.fromkeys(tried))
        planned = [(method, seed) for method in sweep.columns() for seed in sweep.seeds]
        return list(dict.fromkeys([*planned, *tried]))


def find_sweep(name: str, tracking_uri: str) -> TrackedSweep:
    """The newest sweep of a name.

    Raises:
        RecipeError: if no sweep can have the name. TrackingError: if there is none.
    """
    if not re.fullmatch(r"[\w.-]+", name):
        raise RecipeError(f"--sweep is {name!r}; expected the name in a sweep's file: letters, digits, '.', '_', '-'.")
    path = Path(tracking_uri.removeprefix("sqlite:///"))
    if tracking_uri.startswith("sqlite:///") and not path.is_file():  # MLflow would make one
        raise TrackingError(f"There is no database {path}; run this where the sweep ran, or give --tracking-uri.")
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    parents = client.search_runs(experiments, f"tags.`simct.sweep` = '{name}'", order_by=["start_time DESC"])
    if not parents:
        raise TrackingError(
            f"{tracking_uri} has no sweep {name!r}. Run it with: python -m simct_pl sweep --recipe FILE"
        )
    newest, *older = parents
    notes = [f"Older sweeps of this name, which this report leaves out: {len(older)}."] if older else []
    runs = _children(client, experiments, newest.info.run_id)
    return TrackedSweep(client, runs, _sweep_file(client, newest), notes)


def _children(client: MlflowClient, experiments: list[str], parent: str) -> list[Run]:
    found: list[Run] = []
    token = None
    while True:
        page = client.search_runs(
            experiments,
            f"tags.`mlflow.parentRunId` = '{parent}'",
            max_results=PAGE,
            order_by=["start_time DESC"],
            page_token=token,
        )
        found += page
        token = page.token
        if not token:
            return found


def _sweep_file(client: MlflowClient, parent: Run) -> str:
    """Its text, empty if the parent has none; of a file that was renamed, the last by name."""
    names = sorted(item.path for item in client.list_artifacts(parent.info.run_id) if item.path.endswith(".yaml"))
    if not names:
        return ""
    with TemporaryDirectory() as folder:
        return Path(client.download_artifacts(parent.info.run_id, names[-1], folder)).read_text(encoding="utf-8")
