"""Collapse guards: on-policy distillation dies quietly; this says so, or stops the run."""

from __future__ import annotations

import math
from typing import Literal

import lightning as L
from lightning.pytorch.utilities import rank_zero_warn
from typing_extensions import override

from callbacks.alignment_stats import unit_metrics
from simct_pl.errors import CollapseError
from simct_pl.types import PromptBatch, StepRecord


class CollapseGuard(L.Callback):
    """Watches for length inflation, entropy collapse and a loss that is not finite.

    Args:
        action: "warn" once for each kind, or "stop" with a CollapseError.
        max_length_ratio: mean response length, smoothed, over its value in the first steps.
        min_entropy_ratio: the student's mean entropy at unit starts, smoothed, over its value in the first steps.
        num_reference_steps: steps that set the reference. smoothing: weight of the past in the running means.
    """

    def __init__(
        self,
        action: Literal["warn", "stop"] = "warn",
        max_length_ratio: float = 2.0,
        min_entropy_ratio: float = 0.1,
        num_reference_steps: int = 10,
        smoothing: float = 0.9,
    ) -> None:
        self.action = action
        self.max_length_ratio, self.min_entropy_ratio = max_length_ratio, min_entropy_ratio
        self.num_reference_steps, self.smoothing = num_reference_steps, smoothing
        self.length = RunningReference(num_reference_steps, smoothing)
        self.entropy = RunningReference(num_reference_steps, smoothing)
        self._warned: set[str] = set()

    @override
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: object, batch: PromptBatch, batch_idx: int
    ) -> None:
        assert batch.record is not None
        found = self._symptoms(batch.record, trainer.global_step)
        if self.action == "warn":
            for kind in found.keys() - self._warned:
                self._warned.add(kind)
                rank_zero_warn(found[kind])
        elif trainer.strategy.reduce_boolean_decision(bool(found), all=False):
            # Ranks stop together: one that stopped alone would leave the others waiting for it.
            message = " ".join(found.values()) or "Another rank saw a collapse."
            raise CollapseError(f"{message} The run stops because CollapseGuard has action='stop'.")

    def _symptoms(self, record: StepRecord, step: int) -> dict[str, str]:
        """What is wrong with a step, by kind."""
        found = {}
        if not math.isfinite(record.loss_sum):
            found["loss"] = f"The loss of step {step} is {record.loss_sum}."
        lengths = [len(rollout.response_ids) for rollout in record.rollouts]
        ratio = self.length.update(sum(lengths) / len(lengths))
        if ratio > self.max_length_ratio:
            found["length"] = (
                f"Responses are {ratio:.1f} x as long as in the first steps (limit {self.max_length_ratio}). "
                "Check that both models' stop tokens are paired, and the share of truncated responses."
            )
        if any(len(stats.loss_U) for stats in record.stats):
            ratio = self.entropy.update(unit_metrics(record)["policy/entropy"])
            if ratio < self.min_entropy_ratio:
                found["entropy"] = (
                    f"The student's entropy fell to {ratio:.2f} of its first value (limit {self.min_entropy_ratio})."
                )
        return found


class RunningReference:
    """A smoothed value as a ratio to its mean over the first steps; 1.0 until those are over."""

    def __init__(self, num_reference_steps: int, smoothing: float) -> None:
        self.num_reference_steps, self.smoothing = num_reference_steps, smoothing
        self.first: list[float] = []
        self.running = 0.0

    def update(self, value: float) -> float:
        if len(self.first) < self.num_reference_steps:
            self.first.append(value)
            self.running = sum(self.first) / len(self.first)
            return 1.0
        self.running = self.smoothing * self.running + (1 - self.smoothing) * value
        reference = sum(self.first) / len(self.first)
        return self.running / reference if reference > 0 else 1.0
