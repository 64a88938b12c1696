"""AdamW with linear warm-up and cosine decay: the optimizer of every stage."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from simct_pl.errors import RecipeError


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

    def build(self, parameters: Iterable[nn.Parameter], num_steps: float) -> tuple[AdamW, LambdaLR]:
        """Optimizer and schedule over num_steps optimizer steps.

        Raises:
            RecipeError: if the number of steps is unknown, because neither the trainer nor the data bounds it.
        """
        if not math.isfinite(num_steps) or num_steps < 1:
            raise RecipeError(
                f"The run has {num_steps} optimizer steps. Set trainer.max_steps, "
                "or max_epochs with data of known length."
            )
        optimizer = AdamW(parameters, lr=self.lr, betas=self.betas, weight_decay=self.weight_decay)
        return optimizer, LambdaLR(optimizer, lambda step: self.scale(step, int(num_steps)))

    def scale(self, step: int, num_steps: int) -> float:
        """Learning rate of a step (counted from 0) as a share of the peak."""
        num_warmup = math.ceil(self.warmup_ratio * num_steps)
        if step < num_warmup:
            return (step + 1) / (num_warmup + 1)
        progress = min((step - num_warmup) / max(num_steps - num_warmup, 1), 1.0)
        floor = self.min_lr / self.lr
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))
