"""A PNG of the run: held-out score, loss, response length and coverage over the steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
from typing_extensions import override

from simct_pl.files.outputs import check_file
from simct_pl.tracking.artifacts import log_picture
from simct_pl.tracking.outputs import OutputWriter

PANELS = (
    ("eval/accuracy", "held-out accuracy"),
    ("eval/bits_per_byte", "held-out bits per byte"),
    ("eval/loss", "held-out loss per response token"),
    ("loss/train", "loss per response token"),
    ("rollout/response_tokens", "response tokens"),
    ("policy/text_kl", "text KL from the teacher (nats a byte)"),
    ("align/coverage", "coverage"),
    ("policy/entropy", "student entropy (nats)"),
)

FEW_POINTS = 20  # of a curve whose single points are shown, so that one of them is a picture too
SMALLEST_SPAN = 0.02  # of an axis, as a share of its values


class LearningCurve(OutputWriter):
    """Collects the metrics of PANELS and draws those that the run logged, at the end of the fit; and again when
    held-out prompts are scored after it, as the command line does if the last step was not one for validation.

    Args:
        output: path of the PNG. title: heading of the picture.
    """

    only_reports = True

    def __init__(self, output: str, title: str = "On-policy distillation") -> None:
        self.output, self.title = Path(output), title
        self.curves: dict[str, list[tuple[int, float]]] = {}
        self._fit_ended = False

    @override
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.output = check_file(self.output)  # hours before it is needed

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"curves": self.curves}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.curves = state_dict["curves"]

    @override
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        self._collect(trainer, eval_metrics=False)

    @override
    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._fit_ended = False

    @override
    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        self._collect(trainer, eval_metrics=True)
        if self._fit_ended:
            self._draw(trainer)

    def _collect(self, trainer: L.Trainer, eval_metrics: bool) -> None:
        for name, _ in PANELS:
            if name in trainer.callback_metrics and name.startswith("eval/") == eval_metrics:
                self.curves.setdefault(name, []).append((trainer.global_step, float(trainer.callback_metrics[name])))

    @override
    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._fit_ended = True
        self._draw(trainer)

    def _draw(self, trainer: L.Trainer) -> None:
        if not trainer.is_global_zero or not self.curves:
            return
        draw_curves(self.curves, self.output, self.title)
        log_picture(trainer.loggers, self.output, trainer.global_step)


def limits(values: Sequence[float]) -> tuple[float, float]:
    """Lowest and highest value of an axis: a curve that hardly moves is drawn as one, instead of filling the panel."""
    finite = [value for value in values if math.isfinite(value)] or [0.0]
    low, high = min(finite), max(finite)
    margin = max((high - low) * 0.05, max(abs(low), abs(high)) * SMALLEST_SPAN / 2) or SMALLEST_SPAN
    return low - margin, high + margin


def draw_curves(curves: dict[str, list[tuple[int, float]]], output: Path, title: str) -> None:
    """One small panel a metric."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator

    panels = [(name, label) for name, label in PANELS if name in curves]
    columns = min(3 if len(panels) <= 6 else 4, len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(4.2 * columns, 2.9 * rows), squeeze=False, layout="constrained")
    for axis, (name, label) in zip(axes.flat, panels, strict=False):
        steps, values = zip(*curves[name], strict=True)
        few = name.startswith("eval/") or len(steps) <= FEW_POINTS
        axis.plot(steps, values, marker="o" if few else None, markersize=4, linewidth=1.4)
        axis.set_ylim(*limits(values))
        axis.ticklabel_format(useOffset=False)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.set_title(label, fontsize=10)
        axis.set_xlabel("optimizer step", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.25)
    for axis in list(axes.flat)[len(panels) :]:
        axis.set_visible(False)
    figure.suptitle(title, fontsize=12)
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=130)
    plt.close(figure)
