"""What the seeds say: means with intervals, differences on the same seeds, and the share of what could be reached.

Intervals are Student's t at 95 %. Differences are paired: seed by seed, so that what the seeds share (prompts, their
order) cancels. One seed has no interval, and says so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import pandas as pd
from scipy import stats

from simct_pl.errors import RecipeError
from simct_pl.lab.results import SweepResults
from simct_pl.losses.divergences import require_choice

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and half the width of its interval (NaN for a single seed)."""

    mean: float
    half_width: float
    num_seeds: int

    @classmethod
    def of(cls, values: pd.Series) -> Estimate:
        count = len(values)
        if count < 2:
            return cls(float(values.mean()) if count else math.nan, math.nan, count)
        quantile = float(stats.t.ppf((1 + CONFIDENCE) / 2, count - 1))
        return cls(float(values.mean()), quantile * float(values.std(ddof=1)) / math.sqrt(count), count)

    @property
    def excludes_zero(self) -> bool:
        return abs(self.mean) > self.half_width  # False for NaN


@dataclass(frozen=True)
class MethodResult:
    """One method. start, final: of the metric. difference: final minus the baseline's. recovered: share of the upper
    bound's gain. All over seeds; None where there is nothing to compare with.
    """

    method: str
    start: Estimate
    final: Estimate
    difference: Estimate | None
    recovered: Estimate | None


def compare(
    results: SweepResults, metric: str, baseline: str | None, upper: str | None, lower_is_better: bool
) -> list[MethodResult]:
    """Every method, the best first.

    Raises:
        RecipeError: if baseline or upper is no method of the sweep.
    """
    for label, name in (("--baseline", baseline), ("--upper", upper)):
        if name is not None:
            require_choice(label, name, tuple(results.methods))
    found = [_method(results, metric, method, baseline, upper) for method in results.methods]
    return sorted(found, key=lambda one: one.final.mean if lower_is_better else -one.final.mean)


def _method(results: SweepResults, metric: str, method: str, baseline: str | None, upper: str | None) -> MethodResult:
    final = results.values(metric, method)
    difference = recovered = None
    if baseline is not None and baseline != method:
        difference = Estimate.of((final - results.values(metric, baseline)).dropna())
    if upper is not None:
        gain = final - results.first_values(metric, method)
        possible = results.values(metric, upper) - results.first_values(metric, upper)
        recovered = Estimate.of((gain / possible).dropna())
    return MethodResult(
        method, Estimate.of(results.first_values(metric, method)), Estimate.of(final), difference, recovered
    )


def check_metric(metric: str) -> None:
    """Raise a RecipeError unless the name has a group."""
    if "/" not in metric:
        raise RecipeError(f"--metric is {metric!r}; expected a metric as MLflow has it, for example eval/accuracy.")
