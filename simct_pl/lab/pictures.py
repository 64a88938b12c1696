"""The two pictures that answer a report's question: where each method ended and by how much, and how it got there.

In: SweepResults and its Comparison. Out: matplotlib figures; draw_all gives them and those of diagnostics.py as PNGs.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import stats

from simct_pl.lab.compare import CONFIDENCE, Comparison, Difference, MethodResult
from simct_pl.lab.results import SweepResults

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "0.6",
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.axisbelow": True,
    "legend.frameon": False,
}
BEST, TIED, OTHER = "#0072b2", "#56b4e9", "0.4"
BETTER, WORSE, NOISE = "#009e73", "#d55e00", "#8c8c8c"
DPI = 150
NUM_COLUMNS = 5  # of the small curves


def draw_all(results: SweepResults, compared: Comparison) -> dict[str, bytes]:
    """PNGs by name, in the order of the page."""
    import matplotlib

    from simct_pl.lab.diagnostics import draw_steps, draw_time, draw_units

    with matplotlib.rc_context(STYLE):
        figures = {
            "final": _final(results, compared),
            "curves": _curves(results, compared),
            "steps": draw_steps(results, compared),
            "units": draw_units(results, compared),
            "time": draw_time(results, compared),
        }
        return {name: _png(figure) for name, figure in figures.items() if figure is not None}


def _final(results: SweepResults, compared: Comparison) -> Figure:
    """Left: every seed a dot, the mean with its interval, the start a tick; the best in blue, in light blue what cannot
    be told from it. Right: the difference from the baseline, or from the best method.
    """
    from matplotlib.figure import Figure

    metric, shown = compared.metric, list(reversed(compared.measured))
    figure = Figure(figsize=(10, 0.3 * len(shown) + 1.1), layout="constrained")
    ends, gaps = figure.subplots(1, 2, sharey=True, width_ratios=(4, 3))
    gaps.axvline(0, color="0.3", linewidth=1)
    for place, one in enumerate(shown):
        _draw_end(ends, place, one, metric.scaled(1) * results.last(metric.name, one.method), compared)
        _draw_difference(gaps, place, one, compared)
    ends.set_yticks(range(len(shown)), [_label(one, compared) for one in shown])
    for label, one in zip(ends.get_yticklabels(), shown, strict=True):
        label.set_fontweight("bold" if one is compared.best else "normal")
    ends.set_title(f"{metric.name} at the end{', %' if metric.is_share else ''}", loc="left")
    ends.set_xlabel("dots: seeds; tick: the start; light blue: not told from the best", color="0.35")
    reference = compared.baseline or (compared.best.method if compared.best else "")
    unit = f", {metric.difference_unit}" if metric.is_share else ""
    gaps.set_title(f"minus {reference}, on the same seeds{unit}", loc="left")
    gaps.set_xlabel("green: better; red: worse; grey: may be noise", color="0.35")
    gaps.set_visible(len(shown) > 1)
    return figure


def _draw_end(axis: Axes, place: int, one: MethodResult, values: pd.Series, compared: Comparison) -> None:
    is_tied = one.versus_best is not None and not one.versus_best.excludes_zero
    color = BEST if one is compared.best else TIED if is_tied else OTHER
    scale = compared.metric.scaled
    axis.scatter(values, np.full(len(values), place), s=14, alpha=0.4, color=color, linewidths=0)
    face = "white" if one.method == compared.upper else color
    half = 0.0 if np.isnan(one.final.half_width) else scale(one.final.half_width)
    axis.errorbar(
        scale(one.final.mean), place, xerr=half, fmt="D", ms=5, mfc=face, capsize=3, color=color, linewidth=1.6
    )
    axis.plot(scale(one.start.mean), place, marker="|", markersize=12, color="0.6")


def _draw_difference(axis: Axes, place: int, one: MethodResult, compared: Comparison) -> None:
    difference: Difference | None = one.versus_baseline if compared.baseline is not None else one.versus_best
    if difference is None or not difference.estimate.num_seeds:
        return
    estimate, scale = difference.estimate, compared.metric.scaled
    is_gain = (estimate.mean < 0) == compared.metric.lower_is_better
    color = NOISE if not difference.excludes_zero else BETTER if is_gain else WORSE
    half = 0.0 if np.isnan(estimate.half_width) else scale(estimate.half_width)
    axis.errorbar(scale(estimate.mean), place, xerr=half, fmt="o", ms=5, capsize=3, color=color, linewidth=1.8)
    text = compared.metric.difference_text(estimate.mean, estimate.half_width)
    axis.text(1.02, place, text, transform=axis.get_yaxis_transform(), va="center", color=color)


def _label(one: MethodResult, compared: Comparison) -> str:
    note = " (upper)" if one.method == compared.upper else ""
    note += " (baseline)" if one.method == compared.baseline else ""
    missing = "" if one.final.num_seeds == one.num_planned else f" [{one.final.num_seeds} of {one.num_planned}]"
    return f"{one.method}{note}{missing}"


def _curves(results: SweepResults, compared: Comparison) -> Figure:
    """A small picture a method, the best first: its mean and the mean's interval, over all the others in grey."""
    from matplotlib.figure import Figure

    metric, shown = compared.metric, compared.measured
    tables = {one.method: metric.scaled(1) * results.table(metric.name, one.method) for one in shown}
    columns = min(NUM_COLUMNS, len(shown))
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(10, 2.1 * rows + 0.5), layout="constrained")
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axis, one in zip(axes.flat, shown, strict=False):
        for method, table in tables.items():
            if method != one.method:
                is_reference = method == compared.baseline
                style = {"color": "0.25", "ls": ":", "lw": 1.2} if is_reference else {"color": "0.85", "lw": 0.8}
                axis.plot(table.index, table.mean(axis=1), zorder=1, **style)
        color = BEST if one is compared.best else "#555555" if one.method == compared.upper else "#cc79a7"
        _draw_band(axis, tables[one.method], color, is_share=metric.is_share)
        axis.set_title(_label(one, compared), fontweight="bold" if one is compared.best else "normal")
    for axis in list(axes.flat)[len(shown) :]:
        axis.set_visible(False)
    for axis in list(axes.flat)[max(len(shown) - columns, 0) : len(shown)]:  # nothing visible is below these
        axis.tick_params(labelbottom=True)
    if metric.is_share:
        axes[0, 0].set_ylim(-2, 102)
    dotted = f", dotted: {compared.baseline}" if compared.baseline else ""
    figure.supxlabel(f"optimizer step  (band: 95 % interval of the mean, grey: the other methods{dotted})", fontsize=9)
    figure.supylabel(f"{metric.name}{', %' if metric.is_share else ''}", fontsize=9)
    return figure


def _draw_band(axis: Axes, table: pd.DataFrame, color: str, *, is_share: bool) -> None:
    mean, count = table.mean(axis=1), table.count(axis=1)
    axis.plot(mean.index, mean, color=color, linewidth=1.8, zorder=3)
    quantile = stats.t.ppf((1 + CONFIDENCE) / 2, (count - 1).clip(lower=1))
    half = quantile * table.std(axis=1, ddof=1) / np.sqrt(count)  # NaN, and no band, where there is one seed
    low, high = mean - half, mean + half
    if is_share:
        low, high = low.clip(0, 100), high.clip(0, 100)
    axis.fill_between(mean.index, low, high, color=color, alpha=0.22, linewidth=0, zorder=2)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()
