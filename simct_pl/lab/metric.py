"""How the metric of a report is read: which way is better, and whether it is a share of something.

In: its name and its values. Out: a Metric, which also writes numbers the way that fits them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

from simct_pl.errors import RecipeError

LOWER_IS_BETTER = re.compile(r"loss|bits_per_byte|perplexity|text_kl|truncation|non_canonical|seconds")
UNBOUNDED = re.compile(r"loss|bits_per_byte|perplexity|text_kl|entropy|tokens|seconds")  # no shares, even if below 1


@dataclass(frozen=True)
class Metric:
    """A metric. is_share: shown in percent, and its differences in points."""

    name: str
    lower_is_better: bool
    is_share: bool

    @classmethod
    def of(cls, name: str, values: Iterable[float], lower_is_better: bool | None = None) -> Metric:
        """lower_is_better: None to know it by the name."""
        lower = bool(LOWER_IS_BETTER.search(name)) if lower_is_better is None else lower_is_better
        bounded = all(0 <= value <= 1 for value in values if not math.isnan(value))
        return cls(name, lower, bounded and not UNBOUNDED.search(name))

    @property
    def difference_unit(self) -> str:
        return "points" if self.is_share else ""

    def scaled(self, value: float) -> float:
        """As it is drawn: shares in percent."""
        return 100 * value if self.is_share else value

    def text(self, value: float, half_width: float = math.nan) -> str:
        """A value, with half of its interval where there is one: "91.5 % ± 1.2", "0.031 ± 0.002"."""
        percent = " %" if self.is_share else ""
        return interval_text(self.scaled(value), self.scaled(half_width), percent, 1 if self.is_share else None)

    def difference_text(self, value: float, half_width: float = math.nan) -> str:
        """A difference with its sign: "+1.9 ± 0.8"; in points where the metric is a share."""
        decimals = 1 if self.is_share else None
        return interval_text(self.scaled(value), self.scaled(half_width), "", decimals, sign="+")


def check_name(name: str) -> None:
    """Raise a RecipeError unless the name has a group."""
    if "/" not in name:
        raise RecipeError(f"--metric is {name!r}; expected a metric as MLflow has it, for example eval/accuracy.")


def interval_text(value: float, half_width: float, unit: str, decimals: int | None, sign: str = "") -> str:
    """decimals: None for two significant digits of the half width, or four of the value where there is none."""
    if math.isnan(value):
        return "–"
    if decimals is None and not half_width > 1e-9 * abs(value):  # nothing, or what rounding leaves of it
        return f"{value:{sign}.4g}{unit}"
    places = decimals if decimals is not None else max(0, 1 - math.floor(math.log10(half_width)))
    middle = f"{value:{sign}.{places}f}{unit}"
    return middle if math.isnan(half_width) else f"{middle} ± {half_width:.{places}f}"
