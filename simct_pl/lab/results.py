"""A sweep's runs out of MLflow: every cell's metrics over the steps, and the cells that have none.

In: the sweep's name. Out: SweepResults. Per cell the newest finished run counts: a cell that was killed and run again
has left others behind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import pandas as pd

from simct_pl.errors import TrackingError
from simct_pl.lab.histories import read_histories
from simct_pl.lab.store import TrackedSweep, find_sweep

if TYPE_CHECKING:
    from mlflow.entities import Run

# What a report shows beside the metric that it is about; a run lacks those that its recipe does not log.
SHOWN = (
    "eval/",
    "loss/",
    "align/",
    "rollout/",
    "policy/entropy",
    "policy/text_kl",
    "timing/step_seconds",
    "timing/seconds/",
)
LATE = 10  # logged steps at the end of a run, over which diagnostics are averaged
REASONS = {"FAILED": "failed", "KILLED": "killed", "RUNNING": "running, or killed"}
NOT_BEGUN = "not begun"
ONLY_START = "ended before the first step"


@dataclass(frozen=True)
class MissingCell:
    """A cell that cannot be counted, and why, in a few words."""

    method: str
    seed: int
    reason: str


@dataclass(frozen=True)
class SweepResults:
    """methods: in the sweep file's order, those without a finished run too. curves: columns method, seed, metric, step,
    value, in the order of the steps. missing: cells that lack the metric at the end. num_seeds: planned, by method.
    sweep_file: its text. notes: what else a reader must know.
    """

    name: str
    metric: str
    methods: list[str]
    curves: pd.DataFrame
    num_seeds: dict[str, int]
    sweep_file: str
    missing: list[MissingCell] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @cached_property
    def _groups(self) -> dict[tuple[str, str], pd.DataFrame]:
        return {key: frame for key, frame in self.curves.groupby(["metric", "method"])}  # noqa: C416 - keys are typed so

    def points(self, metric: str, method: str) -> pd.DataFrame:
        """One method's values of a metric over steps and seeds; empty where none was logged."""
        return self._groups.get((metric, method), self.curves.iloc[:0])

    def curves_of(self, metric: str) -> pd.Series:
        """All values of a metric, whoever logged them."""
        return self.curves.loc[self.curves["metric"] == metric, "value"]

    def has(self, metric: str) -> bool:
        return any((metric, method) in self._groups for method in self.methods)

    def table(self, metric: str, method: str) -> pd.DataFrame:
        """The same with a row a step and a column a seed."""
        return self.points(metric, method).pivot_table(index="step", columns="seed", values="value")

    def last(self, metric: str, method: str) -> pd.Series:
        """Values at the last step, by seed, without those that are not finite."""
        return self._at_end(metric, method).dropna()

    def first(self, metric: str, method: str) -> pd.Series:
        """Values by seed before any training step, or at the first step that has one."""
        return self.points(metric, method).groupby("seed").head(1).set_index("seed")["value"].dropna()

    def late(self, metric: str, method: str) -> float:
        """Mean over the last steps and over the seeds; NaN where none was logged."""
        return float(self.points(metric, method).groupby("seed").tail(LATE)["value"].mean())

    def median(self, metric: str, method: str) -> float:
        """Over all steps and seeds."""
        return float(self.points(metric, method)["value"].median())

    def not_finite(self, metric: str) -> list[tuple[str, int]]:
        """Cells whose metric is not a number at the end."""
        ends = {method: self._at_end(metric, method) for method in self.methods}
        return [(method, int(seed)) for method, values in ends.items() for seed in values.index[values.isna()]]

    def _at_end(self, metric: str, method: str) -> pd.Series:
        return self.points(metric, method).groupby("seed").tail(1).set_index("seed")["value"].sort_index()


def load_results(name: str, tracking_uri: str, metric: str) -> SweepResults:
    """Read a sweep, by the name in its file; the newest one of that name.

    metric: what the report is about.

    Raises:
        TrackingError: if there is no such sweep, none of its cells has finished, or none has logged the metric.
    """
    sweep = find_sweep(name, tracking_uri)
    finished = [run for run in sweep.runs if run.info.status == "FINISHED"]
    if not finished:
        raise TrackingError(f"Sweep {name!r} has {len(sweep.runs)} runs, none of which has finished.")
    # Only what a report shows: a run logs many more metrics, each with a value a step.
    names = sorted({key for run in finished for key in run.data.metrics if key == metric or key.startswith(SHOWN)})
    if metric not in names:
        known = ", ".join(key for key in names if key.startswith("eval/"))
        raise TrackingError(f"No run of sweep {name!r} has logged {metric!r}; its runs have {known}.")
    points = read_histories(sweep.client, tracking_uri, [run.info.run_id for run in finished], names)
    # From runs to cells: of each cell one run counts, and its curves get the cell's method and seed.
    chosen = _choose(finished, points, metric)
    cells = pd.DataFrame(
        [(run.info.run_id, *cell) for cell, run in chosen.items()], columns=["run_id", "method", "seed"]
    )
    curves = points.merge(cells, on="run_id").drop(columns="run_id")
    # What should be there is in the sweep's file; what is not, the report says with its reason.
    planned = sweep.planned_cells
    num_seeds = {method: sum(one == method for one, _ in planned) for method, _ in planned}
    results = SweepResults(name, metric, list(num_seeds), curves, num_seeds, sweep.file)
    results.missing.extend(_missing(results, sweep, planned, chosen))
    results.notes.extend(sweep.notes + _uneven_ends(results))
    return results


def cell_of(run: Run) -> tuple[str, int]:
    """Method and seed, as the sweep has tagged the run."""
    return run.data.tags["simct.method"], int(run.data.tags["simct.seed"])


def _choose(finished: list[Run], points: pd.DataFrame, metric: str) -> dict[tuple[str, int], Run]:
    """The newest finished run of each cell. A run that was killed between its first validation and its first step is
    tracked as finished too; it has nothing after step 0.
    """
    last_steps = points[points["metric"] == metric].groupby("run_id")["step"].max()
    is_trained = last_steps.max() > 0
    chosen: dict[tuple[str, int], Run] = {}
    for run in finished:  # newest first
        if not is_trained or last_steps.get(run.info.run_id, 1) > 0:
            chosen.setdefault(cell_of(run), run)
    return chosen


def _missing(
    results: SweepResults,
    sweep: TrackedSweep,
    planned: Sequence[tuple[str, int]],
    chosen: dict[tuple[str, int], Run],
) -> list[MissingCell]:
    # Runs come newest first; of equal keys the last one stays, so they are turned round.
    newest = {cell_of(run): run for run in reversed(sweep.runs)}
    not_finite = set(results.not_finite(results.metric))
    found = []
    for method, seed in planned:
        run = newest.get((method, seed))
        if (method, seed) not in chosen:
            # The newest run of the cell says what became of it, if it has any.
            status = run.info.status if run is not None else ""
            reason = ONLY_START if status == "FINISHED" else REASONS.get(status, NOT_BEGUN)
        elif (method, seed) in not_finite:
            reason = f"{results.metric} not finite"
        elif seed not in results.last(results.metric, method).index:
            reason = f"without {results.metric}"
        else:
            continue
        found.append(MissingCell(method, seed, reason))
    return found


def _uneven_ends(results: SweepResults) -> list[str]:
    """Say so if seeds of a method were measured last at different steps."""
    notes = []
    for method in results.methods:
        ends = sorted(results.points(results.metric, method).groupby("seed")["step"].max().unique())
        if len(ends) > 1:
            notes.append(f"Seeds of {method} end at different steps: {', '.join(map(str, ends))}.")
    return notes
