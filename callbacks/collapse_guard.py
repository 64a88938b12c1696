"""Collapse guards: on-policy distillation dies quietly; this says so, or stops the run."""

from __future__ import annotations

import math
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_warn
from typing_extensions import override

from callbacks.alignment_stats import unit_metrics
from simct_pl.errors import CollapseError
from simct_pl.models.ranks import objects_of_ranks
from simct_pl.training.module import DistillModule
from simct_pl.training.text_kl import TextKL, text_kl_sums
from simct_pl.types import PromptBatch, StepRecord

REFERENCES = ("length", "entropy", "text_kl")
# Nats a byte. A student that begins next to its teacher may drift this far before a multiple of it means anything.
TEXT_KL_FLOOR = 0.05


class CollapseGuard(L.Callback):
    """Watches for length inflation, entropy collapse, texts that leave the teacher's and a loss that is not finite.

    Names the prompts of skipped steps.

    Args:
        action: "warn" once for each kind, or "stop" with a CollapseError.
        max_length_ratio: mean response length, smoothed, over its value in the first steps.
        min_entropy_ratio: the student's mean entropy at unit starts, smoothed, over its value in the first steps.
        max_text_kl_ratio: text KL (nats a byte, see TextKL), smoothed, over its value in the first steps, or over
            TEXT_KL_FLOOR where that is more.
        num_reference_steps: steps that set the reference. smoothing: weight of the past in the running means.
    """

    def __init__(
        self,
        action: Literal["warn", "stop"] = "warn",
        max_length_ratio: float = 2.0,
        min_entropy_ratio: float = 0.1,
        max_text_kl_ratio: float = 4.0,
        num_reference_steps: int = 10,
        smoothing: float = 0.9,
    ) -> None:
        self.action = action
        self.max_length_ratio, self.min_entropy_ratio = max_length_ratio, min_entropy_ratio
        self.max_text_kl_ratio = max_text_kl_ratio
        self.num_reference_steps, self.smoothing = num_reference_steps, smoothing
        self.length = RunningReference(num_reference_steps, smoothing)
        self.entropy = RunningReference(num_reference_steps, smoothing)
        self.text_kl = RunningReference(num_reference_steps, smoothing, TEXT_KL_FLOOR)
        self._warned: set[str] = set()
        self._num_skipped = 0

    @override
    def state_dict(self) -> dict[str, Any]:
        references = {name: vars(getattr(self, name)) for name in REFERENCES}
        return {**references, "warned": sorted(self._warned), "num_skipped": self._num_skipped}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name in REFERENCES:
            vars(getattr(self, name)).update(state_dict.get(name, {}))  # older checkpoints know fewer
        self._warned, self._num_skipped = set(state_dict["warned"]), state_dict["num_skipped"]

    @override
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: object, batch: PromptBatch, batch_idx: int
    ) -> None:
        assert batch.record is not None
        if isinstance(pl_module, DistillModule):
            self._report_skip(pl_module.guarded_step.num_skipped, batch.record, trainer.global_step)
        # Every step, whatever the action: the running means must see all of them.
        found = self._symptoms(batch.record, trainer.global_step)
        if self.action == "warn":
            for kind in found.keys() - self._warned:
                self._warned.add(kind)
                rank_zero_warn(found[kind])
        elif trainer.strategy.reduce_boolean_decision(bool(found), all=False):
            # Ranks stop together: one that stopped alone would leave the others waiting for it.
            message = " ".join(found.values()) or "Another rank saw a collapse."
            raise CollapseError(f"{message} The run stops because CollapseGuard has action='stop'.")

    def _report_skip(self, num_skipped: int, record: StepRecord, step: int) -> None:
        """Name the prompts of a step that was not taken; ranks skip together, so all of them come here."""
        if num_skipped == self._num_skipped:
            return
        self._num_skipped = num_skipped
        # The step is lost for all prompts; named are those whose own loss broke it.
        broken = [
            rollout.prompt.index
            for rollout, stats in zip(record.rollouts, record.stats, strict=True)
            if not bool(torch.isfinite(stats.loss_U).all())
        ]
        broken = sorted(index for indices in objects_of_ranks(broken) for index in indices)
        whose = f"The loss of prompts {broken} is not finite" if broken else "All losses are finite"
        rank_zero_warn(
            f"A step after step {step} was not taken, {num_skipped} so far: its gradients are not finite. {whose}."
        )

    def _symptoms(self, record: StepRecord, step: int) -> dict[str, str]:
        """What is wrong with a step, by kind."""
        found = {}
        if not math.isfinite(record.loss_sum):
            found["loss"] = f"The loss of step {step} is {record.loss_sum}."
        record = record.own  # a teacher's responses say nothing of where the student goes
        if not record.rollouts:
            return found
        lengths = [len(rollout.response_ids) for rollout in record.rollouts]
        ratio = self.length.update(sum(lengths) / len(lengths))
        if ratio > self.max_length_ratio:
            found["length"] = (
                f"Responses are {ratio:.1f} x as long as in the first steps (limit {self.max_length_ratio}). "
                "Check that both models' stop tokens are paired, and the share of truncated responses."
            )
        # A step without any unit says nothing of entropy or texts.
        if any(len(stats.loss_U) for stats in record.stats):
            ratio = self.entropy.update(unit_metrics(record)["policy/entropy"])
            if ratio < self.min_entropy_ratio:
                found["entropy"] = (
                    f"The student's entropy fell to {ratio:.2f} of its first value (limit {self.min_entropy_ratio})."
                )
            text_kl = TextKL.of(text_kl_sums(record.alignments, record.stats)).nats_per_byte
            ratio = self.text_kl.update(text_kl)
            if ratio > self.max_text_kl_ratio:
                found["text_kl"] = (
                    f"The student's texts leave the teacher's: text KL is {text_kl:.2f} nats a byte, and over the last "
                    f"steps {ratio:.1f} x its first value (limit {self.max_text_kl_ratio}). See policy/text_kl and "
                    "align/non_canonical, and whether the objective is at fault or the learning rate."
                )
        return found


class RunningReference:
    """A smoothed value as a ratio to its mean over the first steps; 1.0 until those are over.

    floor: the least that counts as the mean over the first steps.

    What is not finite is left out: one broken step must not blind the guard for the rest of the run.
    """

    def __init__(self, num_reference_steps: int, smoothing: float, floor: float = 0.0) -> None:
        self.num_reference_steps, self.smoothing, self.floor = num_reference_steps, smoothing, floor
        self.first: list[float] = []
        self.running = 0.0

    def update(self, value: float) -> float:
        # The first steps set the reference; only then does the running mean start to move away from it.
        if math.isfinite(value):
            if len(self.first) < self.num_reference_steps:
                self.first.append(value)
                self.running = sum(self.first) / len(self.first)
            else:
                self.running = self.smoothing * self.running + (1 - self.smoothing) * value
        reference = max(sum(self.first) / max(len(self.first), 1), self.floor)
        return self.running / reference if reference > 0 else 1.0
