"""AdamW with linear warm-up and cosine decay, and the guard that takes no step on gradients that are not finite."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from simct_pl.errors import CollapseError, RecipeError
from simct_pl.models.sharding import full_tensor

MAX_SKIPPED_IN_A_ROW = 10


@dataclass(frozen=True)
class OptimizerConfig:
    """Optimizer settings; the defaults are those of the paper's Table 4.

    lr: peak learning rate. betas, weight_decay: of AdamW. warmup_ratio: share of all steps with a rising rate.
    min_lr: rate after the last step. max_grad_norm: global gradient norm is clipped to this.

    Raises:
        RecipeError: for a value outside its range.
    """

    lr: float = 1e-6
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.0
    warmup_ratio: float = 0.05
    min_lr: float = 1e-8
    max_grad_norm: float = 1.0

    def __post_init__(self) -> None:
        if self.lr <= 0 or self.min_lr < 0 or self.min_lr > self.lr:
            raise RecipeError(f"lr={self.lr}, min_lr={self.min_lr}; expected 0 <= min_lr <= lr and lr > 0.")
        if not 0 <= self.warmup_ratio < 1:
            raise RecipeError(f"warmup_ratio is {self.warmup_ratio}; expected a share in [0, 1).")
        if self.max_grad_norm <= 0:
            raise RecipeError(f"max_grad_norm is {self.max_grad_norm}; expected a positive number (inf: no clipping).")

    def build(
        self, parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]], num_steps: float
    ) -> tuple[AdamW, LambdaLR]:
        """Optimizer and schedule over num_steps optimizer steps.

        parameters: or groups of them; a group with an `lr` of its own rises and falls with the same schedule.

        Raises:
            RecipeError: if the number of steps is unknown, because neither the trainer nor the data bounds it.
        """
        if not math.isfinite(num_steps) or num_steps < 1:
            raise RecipeError(
                f"The run has {num_steps} optimizer steps. Set trainer.max_steps, "
                "or max_epochs with data of known length."
            )
        optimizer = AdamW(parameters, lr=self.lr, betas=self.betas, weight_decay=self.weight_decay, fused=True)
        return optimizer, LambdaLR(optimizer, lambda step: self.scale(step, int(num_steps)))

    def scale(self, step: int, num_steps: int) -> float:
        """Learning rate of a step (counted from 0) as a share of the peak."""
        # The first step moves already, and the first one behind the warm-up has the peak rate.
        num_warmup = math.ceil(self.warmup_ratio * num_steps)
        if step < num_warmup:
            return (step + 1) / (num_warmup + 1)
        progress = min((step - num_warmup) / max(num_steps - num_warmup, 1), 1.0)
        floor = self.min_lr / self.lr
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))


class GuardedStep:
    """Takes optimizer steps, but none whose gradients are not finite: it would ruin the weights.

    num_skipped: steps that were not taken so far.
    """

    def __init__(self, max_grad_norm: float) -> None:
        self.max_grad_norm = max_grad_norm
        self.num_skipped = self.num_skipped_in_a_row = 0

    def state_dict(self) -> dict[str, int]:
        return {"num_skipped": self.num_skipped, "num_skipped_in_a_row": self.num_skipped_in_a_row}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.num_skipped, self.num_skipped_in_a_row = state["num_skipped"], state["num_skipped_in_a_row"]

    def __call__(
        self, parameters: Iterable[nn.Parameter], optimizer: Optimizer | LightningOptimizer, scheduler: LambdaLR
    ) -> dict[str, float | Tensor]:
        """Clip, step both if the gradient norm is finite, and zero the gradients.

        Returns:
            metrics: gradient norm before clipping, learning rate of the step, skipped steps so far.

        Raises:
            CollapseError: after MAX_SKIPPED_IN_A_ROW steps in a row that were not taken.
        """
        lr = optimizer.param_groups[0]["lr"]
        norm = full_tensor(torch.nn.utils.clip_grad_norm_(parameters, self.max_grad_norm))  # the same on every rank
        # The norm is of all ranks' gradients, so that they take a step together or leave it together.
        if bool(torch.isfinite(norm)):
            optimizer.step()
            scheduler.step()
            self.num_skipped_in_a_row = 0
        else:
            self._skip()
        optimizer.zero_grad()
        return {"optim/grad_norm": norm, "optim/lr": lr, "optim/skipped_steps": float(self.num_skipped)}

    def _skip(self) -> None:
        self.num_skipped += 1
        self.num_skipped_in_a_row += 1
        if self.num_skipped_in_a_row == MAX_SKIPPED_IN_A_ROW:
            raise CollapseError(
                f"The gradients of {MAX_SKIPPED_IN_A_ROW} steps in a row are not finite; none was taken. "
                "Lower optimizer.lr, or look for the first step at which loss/train or optim/grad_norm jumps."
            )
