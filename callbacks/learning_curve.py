"""A PNG of the run: held-out score, loss, response length and coverage over the steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
from typing_extensions import override

from simct_pl.files.outputs import check_file
from simct_pl.tracking.logger import MLFLOW_LOGGERS

PANELS = (
    ("eval/accuracy", "held-out accuracy"),
    ("eval/bits_per_byte", "held-out bits per byte"),
    ("loss/train", "loss per response token"),
    ("rollout/response_tokens", "response tokens"),
    ("align/coverage", "coverage"),
    ("policy/entropy", "student entropy (nats)"),
)


class LearningCurve(L.Callback):
    """Collects the metrics of PANELS and draws those that the run logged, at the end of the fit.

    Args:
        output: path of the PNG. title: heading of the picture.
    """

    only_reports = True

    def __init__(self, output: str, title: str = "On-policy distillation") -> None:
        self.output, self.title = Path(output), title
        self.curves: dict[str, list[tuple[int, float]]] = {}

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
    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.sanity_checking:
            self._collect(trainer, eval_metrics=True)

    def _collect(self, trainer: L.Trainer, eval_metrics: bool) -> None:
        for name, _ in PANELS:
            if name in trainer.callback_metrics and name.startswith("eval/") == eval_metrics:
                self.curves.setdefault(name, []).append((trainer.global_step, float(trainer.callback_metrics[name])))

    @override
    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.is_global_zero or not self.curves:
            return
        draw_curves(self.curves, self.output, self.title)
        for logger in trainer.loggers:
            if isinstance(logger, MLFLOW_LOGGERS):
                logger.experiment.log_artifact(logger.run_id, str(self.output))


def draw_curves(curves: dict[str, list[tuple[int, float]]], output: Path, title: str) -> None:
    """One small panel a metric."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = [(name, label) for name, label in PANELS if name in curves]
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(4.2 * columns, 2.9 * rows), squeeze=False, layout="constrained")
    for axis, (name, label) in zip(axes.flat, panels, strict=False):
        steps, values = zip(*curves[name], strict=True)
        axis.plot(steps, values, marker="o" if name.startswith("eval/") else None, markersize=4, linewidth=1.4)
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
