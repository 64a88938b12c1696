"""The pictures of a report: where each method ended, how it got there, and what its responses were like on the way."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from simct_pl.lab.compare import MethodResult
from simct_pl.lab.results import SweepResults

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

UNIT_SHAPES = {"1:1": "1_1", "1:n": "1_n", "n:1": "n_1", "n:m": "n_m"}
SMOOTHING = 10  # steps; curves of training steps are means over so many
DIAGNOSTICS = (
    ("rollout/response_tokens", "response tokens"),
    ("rollout/truncation_rate", "responses cut at the limit"),
    ("align/non_canonical", "responses spelt unlike the student's tokenizer"),
    ("policy/entropy", "student entropy (nats)"),
    ("loss/shared_units", "loss a token, 1:1 units"),
    ("loss/span_units", "loss a token, other units"),
)


def draw_all(results: SweepResults, compared: list[MethodResult], metric: str) -> dict[str, bytes]:
    """PNGs by name."""
    import matplotlib

    matplotlib.use("Agg")
    colors = _colors([one.method for one in compared])
    pictures = {"final": _final(results, compared, metric, colors), "curves": _curves(results, metric, colors)}
    if any(name in results.runs for name, _ in DIAGNOSTICS):
        pictures["diagnostics"] = _diagnostics(results, colors)
    if "align/coverage" in results.runs:
        pictures["units"] = _units(results, compared)
    return {name: _png(figure) for name, figure in pictures.items()}


def _colors(methods: list[str]) -> dict[str, Any]:
    import matplotlib.pyplot as plt

    palette = [*plt.get_cmap("tab10").colors, *plt.get_cmap("Dark2").colors]  # type: ignore[attr-defined]
    return {method: palette[i % len(palette)] for i, method in enumerate(methods)}


def _final(results: SweepResults, compared: list[MethodResult], metric: str, colors: dict[str, Any]) -> Figure:
    """Every seed as a dot, the mean with its interval, the start as a tick; the best on top."""
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(8.5, 0.42 * len(compared) + 1.4), layout="constrained")
    for place, one in enumerate(reversed(compared)):
        values = results.values(metric, one.method)
        axis.scatter(values, np.full(len(values), place), s=16, alpha=0.45, color=colors[one.method], linewidths=0)
        half = 0.0 if np.isnan(one.final.half_width) else one.final.half_width
        axis.errorbar(one.final.mean, place, xerr=half, fmt="D", markersize=5, capsize=3, color=colors[one.method])
        axis.plot(one.start.mean, place, marker="|", markersize=13, color="0.55")
    axis.set_yticks(range(len(compared)), [one.method for one in reversed(compared)])
    axis.set_xlabel(f"{metric} at the end: mean and 95 % interval over seeds, dots are seeds, | is the start")
    axis.grid(axis="x", alpha=0.3)
    return figure


def _curves(results: SweepResults, metric: str, colors: dict[str, Any]) -> Figure:
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(8.5, 4.8), layout="constrained")
    _draw(axis, results.curves, metric, colors, band=True)
    axis.set_ylabel(metric)
    axis.set_xlabel("optimizer step; bands are the seeds' range")
    figure.legend(loc="outside right upper", fontsize=8)
    return figure


def _diagnostics(results: SweepResults, colors: dict[str, Any]) -> Figure:
    import matplotlib.pyplot as plt

    panels = [(name, label) for name, label in DIAGNOSTICS if name in results.runs]
    rows = -(-len(panels) // 3)
    figure, axes = plt.subplots(rows, 3, figsize=(12, 3 * rows), squeeze=False, layout="constrained")
    for axis, (name, label) in zip(axes.flat, panels, strict=False):
        _draw(axis, results.curves, name, colors, band=False)
        axis.set_title(label, fontsize=10)
        axis.tick_params(labelsize=8)
    for axis in list(axes.flat)[len(panels) :]:
        axis.set_visible(False)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=6, fontsize=8)
    return figure


def _draw(axis: Axes, curves: pd.DataFrame, metric: str, colors: dict[str, Any], *, band: bool) -> None:
    """The mean over seeds, by method; metrics of training steps smoothed."""
    for method, color in colors.items():
        found = curves[(curves["method"] == method) & (curves["metric"] == metric)]
        if found.empty:
            continue
        table = found.pivot_table(index="step", columns="seed", values="value")
        if not metric.startswith("eval/"):
            table = table.rolling(SMOOTHING, min_periods=1).mean()
        mean = table.mean(axis=1)
        axis.plot(mean.index, mean, color=color, linewidth=1.5, label=method)
        if band and table.shape[1] > 1:
            axis.fill_between(mean.index, table.min(axis=1), table.max(axis=1), color=color, alpha=0.12, linewidth=0)
    axis.grid(alpha=0.25)


def _units(results: SweepResults, compared: list[MethodResult]) -> Figure:
    """Coverage and graded tokens, and the shapes of the units, as shares."""
    import matplotlib.pyplot as plt

    methods = [one.method for one in reversed(compared)]
    means = results.runs.groupby("method").mean(numeric_only=True).loc[methods]
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(12, 0.34 * len(methods) + 1.8), layout="constrained", sharey=True
    )
    places = np.arange(len(methods))
    left.barh(places + 0.2, means["align/coverage"], height=0.38, label="in a unit (coverage)", color="#9ecae1")
    left.barh(places - 0.2, means["align/supervised_tokens"], height=0.38, label="graded", color="#3182bd")
    left.set_yticks(places, methods)
    left.set_xlabel("share of the student's response tokens")
    offset = np.zeros(len(methods))
    for shape, name in UNIT_SHAPES.items():
        if (column := f"align/units_{name}") in means:
            right.barh(places, means[column], left=offset, height=0.7, label=f"{shape} (student:teacher)")
            offset = offset + means[column].to_numpy()
    right.set_xlabel("share of the units, by their numbers of tokens")
    for axis in (left, right):
        axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, 1.0 + 0.9 / (len(methods) + 2)), ncols=4)
        axis.set_xlim(0, 1)
    return figure


def _png(figure: Figure) -> bytes:
    import matplotlib.pyplot as plt

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    plt.close(figure)
    return buffer.getvalue()
