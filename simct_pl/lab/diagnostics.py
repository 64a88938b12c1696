"""The pictures that explain a report's result: what the responses were like over the steps, what was supervised, and
what a step cost.

In: SweepResults and its Comparison. Out: matplotlib figures, or None where no run has logged what they show.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from simct_pl.lab.compare import Comparison
from simct_pl.lab.results import SweepResults
from simct_pl.training.step_timer import PHASES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SMOOTHING = 10  # steps; curves of training steps are means over so many
STEP_PANELS = (
    ("eval/response_tokens", "held-out answers: tokens"),
    ("eval/truncation_rate", "held-out answers: cut at the limit"),
    ("rollout/response_tokens", "training responses: tokens"),
    ("rollout/truncation_rate", "training responses: cut at the limit"),
    ("loss/shared_units", "loss a response token, 1:1 units"),
    ("loss/span_units", "loss a response token, other units"),
    ("policy/entropy", "student entropy (nats)"),
    ("align/non_canonical", "non-canonical spellings, share"),
)
SHAPES = {"1_1": "1:1", "1_n": "1:n", "n_1": "n:1", "n_m": "n:m"}
LENGTHS = {"1": "1", "2": "2", "3": "3", "4_7": "4-7", "8_up": "8 or more"}
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")  # Okabe and Ito's
DASHES = ("-", "--", ":")
PHASE_COLORS = ("#56b4e9", "#b9dcf2", "#f0e442", "#cc79a7", "#e69f00", "#d55e00", "#8b3a00", "#009e73", "#bbbbbb")


def draw_steps(results: SweepResults, compared: Comparison) -> Figure | None:
    """Means over seeds, a line a method; metrics of training steps smoothed."""
    from matplotlib.figure import Figure

    panels = [(name, title) for name, title in STEP_PANELS if results.has(name)]
    if not panels:
        return None
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    methods = [one.method for one in compared.measured]
    legend_rows = -(-len(methods) // 5)
    figure = Figure(figsize=(12, 2.6 * rows + 0.22 * legend_rows + 0.3), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis, (name, title) in zip(axes.flat, panels, strict=False):
        for i, method in enumerate(methods):
            # Held-out metrics are few and exact; those of training steps are one batch each, and jump.
            table = results.table(name, method)
            if not name.startswith("eval/"):
                table = table.rolling(SMOOTHING, min_periods=1).mean()
            style = {"color": COLORS[i % len(COLORS)], "linestyle": DASHES[i // len(COLORS) % len(DASHES)]}
            axis.plot(table.index, table.mean(axis=1), linewidth=1.4, label=method, **style)
        axis.set_title(title)
        axis.set_ylim(bottom=0)
    for axis in list(axes.flat)[len(panels) :]:
        axis.set_visible(False)
    figure.supxlabel("optimizer step", fontsize=9)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=5)
    return figure


def draw_units(results: SweepResults, compared: Comparison) -> Figure | None:
    """Coverage and supervised tokens; the shapes of the units; their lengths. Means over the last training steps."""
    if not results.has("align/coverage"):
        return None
    figure, (covered, shapes, lengths) = _bar_axes(compared, 3)
    methods = [one.method for one in reversed(compared.measured)]
    places = np.arange(len(methods))
    for name, title, offset, color in (
        ("align/coverage", "in a unit (coverage)", 0.19, "#9ecae1"),
        ("align/supervised_tokens", "supervised", -0.19, "#08519c"),
    ):
        covered.barh(places + offset, _late(results, name, methods), 0.36, label=title, color=color)
    _stack(shapes, results, methods, {f"align/units_{key}": title for key, title in SHAPES.items()}, COLORS)
    _stack(lengths, results, methods, {f"align/length_{key}": title for key, title in LENGTHS.items()}, COLORS)
    covered.set_xlabel("share of the response's tokens")
    shapes.set_xlabel("share of the units, by student : teacher tokens")
    lengths.set_xlabel("share of the units, by tokens on the longer side")
    for axis in (covered, shapes, lengths):
        axis.set_xlim(0, 1)
        axis.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=5, handlelength=1, columnspacing=1)
    return figure


def draw_time(results: SweepResults, compared: Comparison) -> Figure | None:
    """Seconds a step, by phase: the median over steps and seeds."""
    phases = [phase for phase in PHASES if results.has(f"timing/seconds/{phase}")]
    if not phases:
        return None
    figure, (axis,) = _bar_axes(compared, 1)
    methods = [one.method for one in reversed(compared.measured)]
    offset = np.zeros(len(methods))
    for phase, color in zip(phases, PHASE_COLORS, strict=False):
        seconds = np.nan_to_num([results.median(f"timing/seconds/{phase}", method) for method in methods])
        axis.barh(np.arange(len(methods)), seconds, 0.7, left=offset, label=phase.replace("_", " "), color=color)
        offset = offset + seconds
    for place, total in enumerate(offset):
        axis.annotate(f" {total:.2f}", (total, place), va="center")
    axis.margins(x=0.08)
    axis.set_xlabel("seconds a training step, medians of its phases")
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _bar_axes(compared: Comparison, columns: int) -> tuple[Figure, list[Axes]]:
    """Axes in a row, with a place for each method, the best on top."""
    from matplotlib.figure import Figure

    methods = [one.method for one in reversed(compared.measured)]
    width = 12 if columns > 1 else 10
    figure = Figure(figsize=(width, 0.28 * len(methods) + 1.2), layout="constrained")
    axes = figure.subplots(1, columns, sharey=True, squeeze=False)
    axes[0, 0].set_yticks(range(len(methods)), methods)
    axes[0, 0].set_ylim(-0.6, len(methods) - 0.4)
    for axis in axes.flat:
        axis.grid(axis="y", visible=False)
    return figure, list(axes.flat)


def _stack(axis: Axes, results: SweepResults, methods: list[str], parts: dict[str, str], colors: Any) -> None:
    offset = np.zeros(len(methods))
    for (name, title), color in zip(parts.items(), colors, strict=False):
        shares = _late(results, name, methods)
        axis.barh(np.arange(len(methods)), shares, 0.7, left=offset, label=title, color=color)
        offset = offset + shares


def _late(results: SweepResults, metric: str, methods: list[str]) -> np.ndarray:
    """Late means by method; 0 where a method did not log the metric."""
    return np.nan_to_num([results.late(metric, method) for method in methods])
