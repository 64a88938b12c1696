"""What the seeds say: means with intervals, differences on the same seeds, and the share of what could be reached.

Intervals are Student's t at 95 %: mean ± t(.975, n - 1) · s / sqrt(n) over n seeds, s with n - 1. Differences are
paired, seed by seed, so that what seeds share (prompts, their order) cancels. One seed has no interval, and says so. Of
many comparisons with a baseline some look real by chance: Holm's procedure (Scand. J. Statist. 6, 1979) tells which
stand.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pandas as pd
from scipy import stats

from simct_pl.errors import require_choice
from simct_pl.lab.metric import Metric
from simct_pl.lab.results import SweepResults

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds, half the width of its interval (NaN for a single seed), and how many seeds there were."""

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
class Difference:
    """One method minus another, over the seeds that both have.

    p: of a paired two-sided t test, NaN for a single seed. stands: whether it is still one after Holm's correction.
    """

    estimate: Estimate
    p: float
    stands: bool = False

    @classmethod
    def of(cls, values: pd.Series, others: pd.Series) -> Difference:
        # pandas subtracts seed from seed; one that either method lacks is NaN, and is left out.
        differences = (values - others).dropna()
        estimate = Estimate.of(differences)
        if estimate.num_seeds < 2:
            return cls(estimate, math.nan)
        # The paired t test: the mean difference over its standard error, against t with n - 1 degrees of freedom.
        error = float(differences.std(ddof=1)) / math.sqrt(len(differences))
        if error == 0:  # every seed says the same, to the last digit
            return cls(estimate, 1.0 if estimate.mean == 0 else 0.0)
        return cls(estimate, float(2 * stats.t.sf(abs(estimate.mean) / error, len(differences) - 1)))

    @property
    def excludes_zero(self) -> bool:
        return self.estimate.excludes_zero


@dataclass(frozen=True)
class MethodResult:
    """One method. start, final: of the metric. versus_baseline, versus_best: final minus that method's; None for itself
    or where there is none. recovered: share of the upper bound's gain; None without an upper bound.
    """

    method: str
    num_planned: int
    start: Estimate
    final: Estimate
    versus_baseline: Difference | None = None
    versus_best: Difference | None = None
    recovered: Estimate | None = None


@dataclass(frozen=True)
class Comparison:
    """All methods, the best first, those without a finished run last.

    best: the best of those that are not the upper bound; None if there is no other.
    """

    metric: Metric
    baseline: str | None
    upper: str | None
    methods: list[MethodResult]
    best: MethodResult | None

    @property
    def measured(self) -> list[MethodResult]:
        """Those with a value."""
        return [one for one in self.methods if one.final.num_seeds]

    @property
    def rivals(self) -> list[MethodResult]:
        """Those that the best one competes with, in order."""
        return [one for one in self.measured if one is not self.best and one.method != self.upper]


def compare(
    results: SweepResults, baseline: str | None = None, upper: str | None = None, lower_is_better: bool | None = None
) -> Comparison:
    """Compare the methods by the results' metric. lower_is_better: None to know it by the metric's name.

    Raises:
        RecipeError: if baseline or upper is no method of the sweep.
    """
    for label, name in (("--baseline", baseline), ("--upper", upper)):
        if name is not None:
            require_choice(label, name, tuple(results.methods))
    # All methods' last values, by seed: every comparison below is of these.
    finals = {method: results.last(results.metric, method) for method in results.methods}
    metric = Metric.of(results.metric, results.curves_of(results.metric), lower_is_better)
    sign = 1 if metric.lower_is_better else -1
    found = [_method(results, method, finals, baseline, upper) for method in results.methods]
    found.sort(key=lambda one: sign * one.final.mean if one.final.num_seeds else math.inf)
    # The best that is no upper bound. Others are compared with it only now that it is known.
    leader = next((one.method for one in found if one.method != upper and one.final.num_seeds), None)
    if leader is not None:
        found = [
            one if one.method == leader else replace(one, versus_best=Difference.of(finals[one.method], finals[leader]))
            for one in found
        ]
    found = _holm(found)
    return Comparison(metric, baseline, upper, found, next((one for one in found if one.method == leader), None))


def _method(
    results: SweepResults, method: str, finals: dict[str, pd.Series], baseline: str | None, upper: str | None
) -> MethodResult:
    # Differences from the baseline are of what the seeds end with; the share is of what they gained since the start.
    start, final = results.first(results.metric, method), finals[method]
    difference = None if baseline in (None, method) else Difference.of(final, finals[str(baseline)])
    recovered = None
    if upper is not None:
        gain, possible = final - start, finals[upper] - results.first(results.metric, upper)
        # Seed by seed. Where the upper bound gained nothing, there is nothing to have a share of.
        recovered = Estimate.of((gain / possible.where(possible != 0)).dropna())
    num_planned = results.num_seeds[method]
    return MethodResult(method, num_planned, Estimate.of(start), Estimate.of(final), difference, None, recovered)


def _holm(found: list[MethodResult]) -> list[MethodResult]:
    """Mark the differences from the baseline that stand: the smallest p is at most .05 / m, the next .05 / (m - 1) …"""
    tested = [(one.versus_baseline.p, one.method) for one in found if one.versus_baseline is not None]
    tested = sorted(pair for pair in tested if not math.isnan(pair[0]))
    # From the smallest p on: each must pass a limit for as many tests as are left, and behind the first failure none
    # stands.
    standing = set()
    for rank, (p, method) in enumerate(tested):
        if p > (1 - CONFIDENCE) / (len(tested) - rank):
            break
        standing.add(method)
    return [
        replace(one, versus_baseline=replace(one.versus_baseline, stands=True))
        if one.method in standing and one.versus_baseline is not None
        else one
        for one in found
    ]
