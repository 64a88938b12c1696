"""A sweep's runs out of MLflow, as tables: one row a run, and one row a run, metric and step.

In: the sweep's name. Out: SweepResults. Per cell the newest finished run counts: a cell that was killed and run again
has left others behind.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from simct_pl.errors import TrackingError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

# What a report draws over the steps; a run lacks those that its recipe does not log.
CURVES = (
    "eval/accuracy",
    "eval/bits_per_byte",
    "eval/loss",
    "eval/truncation_rate",
    "loss/shared_units",
    "loss/span_units",
    "align/non_canonical",
    "align/student_candidate_mass",
    "policy/entropy",
    "rollout/response_tokens",
    "rollout/truncation_rate",
)
PAGE = 1000


@dataclass(frozen=True)
class SweepResults:
    """runs: columns run_id, method, seed and every metric's last value. curves: columns method, seed, metric, step,
    value. missing: cells without a finished run. sweep_file: its text.
    """

    name: str
    runs: pd.DataFrame
    curves: pd.DataFrame
    missing: list[str]
    sweep_file: str

    @property
    def methods(self) -> list[str]:
        """In the order in which they were first run."""
        return list(dict.fromkeys(self.runs["method"]))

    def values(self, metric: str, method: str) -> pd.Series:
        """A metric's last values by seed.

        Raises:
            TrackingError: if no run has the metric.
        """
        if metric not in self.runs:
            known = ", ".join(sorted(name for name in self.runs if str(name).startswith("eval/")))
            raise TrackingError(f"No run of sweep {self.name!r} has logged {metric!r}; its runs have {known}.")
        return self.runs[self.runs["method"] == method].set_index("seed")[metric].dropna().sort_index()

    def first_values(self, metric: str, method: str) -> pd.Series:
        """A metric's values by seed before any training step, or at the first step that has one."""
        curves = self.curves[(self.curves["method"] == method) & (self.curves["metric"] == metric)]
        return curves.sort_values("step").groupby("seed")["value"].first()


def load_results(name: str, tracking_uri: str, metric: str) -> SweepResults:
    """Read a sweep, by the name in its file; the newest one of that name.

    metric: read over the steps too, beside CURVES.

    Raises:
        TrackingError: if there is no such sweep, or none of its cells has finished.
    """
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    parents = client.search_runs(experiments, f"tags.`simct.sweep` = '{name}'", order_by=["start_time DESC"])
    if not parents:
        raise TrackingError(
            f"{tracking_uri} has no sweep {name!r}. Run it with: python -m simct_pl sweep --recipe FILE"
        )
    children = _children(client, experiments, parents[0].info.run_id)
    finished: dict[str, Run] = {}
    for run in children:  # newest first
        if run.info.status == "FINISHED":
            finished.setdefault(run.data.tags["simct.cell"], run)
    if not finished:
        raise TrackingError(f"Sweep {name!r} has {len(children)} runs, none of which has finished.")
    missing = sorted({run.data.tags["simct.cell"] for run in children} - finished.keys())
    ordered = sorted(finished.values(), key=lambda run: run.info.start_time)
    rows = [{"run_id": run.info.run_id, **_cell_of(run), **run.data.metrics} for run in ordered]
    curves = [row for run in ordered for row in _curves(client, run, {*CURVES, metric})]
    frame = pd.DataFrame(curves, columns=["method", "seed", "metric", "step", "value"])
    return SweepResults(name, pd.DataFrame(rows), frame, missing, _sweep_file(client, parents[0]))


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


def _cell_of(run: Run) -> dict[str, str | int]:
    return {"method": run.data.tags["simct.method"], "seed": int(run.data.tags["simct.seed"])}


def _curves(client: MlflowClient, run: Run, metrics: set[str]) -> list[dict[str, object]]:
    return [
        {**_cell_of(run), "metric": name, "step": point.step, "value": point.value}
        for name in sorted(metrics & run.data.metrics.keys())
        for point in client.get_metric_history(run.info.run_id, name)
    ]


def _sweep_file(client: MlflowClient, parent: Run) -> str:
    from pathlib import Path
    from tempfile import TemporaryDirectory

    names = [item.path for item in client.list_artifacts(parent.info.run_id) if item.path.endswith(".yaml")]
    with TemporaryDirectory() as folder:
        paths = [Path(client.download_artifacts(parent.info.run_id, name, folder)) for name in names]
        return "\n".join(path.read_text(encoding="utf-8") for path in paths)
