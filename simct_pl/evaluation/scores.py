"""Numbers of one evaluation: items (problem × seed) in, means with their spread out.

pass@k is the unbiased estimator of Chen et al. 2021 (arXiv 2107.03374, eq. 1). The interval is a percentile bootstrap
over problems: it says how far another draw of problems would move the mean, the std over seeds how far another draw of
responses would.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from simct_pl.errors import EvaluationError

NUM_RESAMPLES = 2000
PASS_AT = (1, 2, 5, 10, 100)


@dataclass(frozen=True)
class Item:
    """One graded response. seed_index: which of the seeds, from 0; sampling_seed: what the engine was given."""

    problem: str
    seed_index: int
    sampling_seed: int
    response: str
    finish_reason: str
    num_tokens: int
    score: float
    reason: str
    detail: str = ""


@dataclass(frozen=True)
class BenchmarkResult:
    """accuracy: mean over seeds of the mean over problems; std: of the seeds' means (n - 1), None for one seed.
    low, high: 95 % bootstrap interval of the accuracy over problems. pass_at: k → unbiased estimate.
    truncation_rate: share of responses cut at the limit. response_tokens: their mean length. reasons: counts.
    """

    benchmark: str
    num_problems: int
    num_seeds: int
    accuracy: float
    std: float | None
    low: float
    high: float
    pass_at: dict[int, float]
    truncation_rate: float
    response_tokens: float
    reasons: dict[str, int]

    def metrics(self) -> dict[str, float]:
        """By the names that are logged: eval/<benchmark>/…"""
        values = {"accuracy": self.accuracy, "low": self.low, "high": self.high}
        values |= {f"pass_at_{k}": value for k, value in self.pass_at.items()}  # MLflow takes no "@"
        values |= {"truncation_rate": self.truncation_rate, "response_tokens": self.response_tokens}
        if self.std is not None:
            values["std"] = self.std
        return {f"eval/{self.benchmark}/{name}": value for name, value in values.items()}


def summarise(benchmark: str, items: Sequence[Item]) -> BenchmarkResult:
    """The numbers of a whole evaluation.

    Raises:
        EvaluationError: if some problem lacks the response of some seed, or has one twice.
    """
    scores_PK = score_table(benchmark, items)
    num_problems, num_seeds = scores_PK.shape
    of_seeds_K = scores_PK.mean(0)
    low, high = bootstrap_interval(scores_PK.mean(1))
    right_P = scores_PK.sum(1)
    return BenchmarkResult(
        benchmark,
        num_problems,
        num_seeds,
        accuracy=float(of_seeds_K.mean()),
        std=float(of_seeds_K.std(ddof=1)) if num_seeds > 1 else None,
        low=low,
        high=high,
        pass_at={
            k: float(np.mean([pass_at_k(num_seeds, round(right), k) for right in right_P]))
            for k in PASS_AT
            if k <= num_seeds
        },
        truncation_rate=float(np.mean([item.finish_reason == "length" for item in items])),
        response_tokens=float(np.mean([item.num_tokens for item in items])),
        reasons=dict(Counter(item.reason for item in items).most_common()),
    )


def score_table(benchmark: str, items: Sequence[Item]) -> np.ndarray:
    """Scores, float64 [problems, seeds].

    Raises:
        EvaluationError: as summarise().
    """
    problems = {problem: row for row, problem in enumerate(dict.fromkeys(item.problem for item in items))}
    num_seeds = max((item.seed_index for item in items), default=-1) + 1
    scores_PK = np.full((len(problems), num_seeds), np.nan)
    for item in items:
        scores_PK[problems[item.problem], item.seed_index] = item.score
    if scores_PK.size == 0 or np.isnan(scores_PK).any() or len(items) != scores_PK.size:
        raise EvaluationError(
            f"{benchmark} has {len(items)} graded responses; expected {len(problems)} problems x {num_seeds} seeds, "
            "each once."
        )
    return scores_PK


def pass_at_k(num_samples: int, num_right: int, k: int) -> float:
    """Probability that one of k samples, drawn without replacement from those taken, is right: 1 - C(n-c,k)/C(n,k)."""
    return 1.0 - math.comb(num_samples - num_right, k) / math.comb(num_samples, k)


def bootstrap_interval(means_P: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of the mean over problems; the same problems give the same interval."""
    drawn = np.random.default_rng(0).integers(len(means_P), size=(NUM_RESAMPLES, len(means_P)))
    low, high = np.quantile(means_P[drawn].mean(1), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
