"""What the ranks of a run have to agree on: sums over all of them, and when they exchange gradients."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import lightning as L
import torch
from lightning.pytorch.strategies import ParallelStrategy
from torch import Tensor


def over_ranks(module: L.LightningModule, value: float) -> Tensor:
    """The value of every rank, float64 [ranks]."""
    gathered = module.all_gather(torch.tensor(value, dtype=torch.float64, device=module.device))
    assert isinstance(gathered, Tensor)
    return gathered.reshape(-1)


def exchange_gradients(trainer: L.Trainer, now: bool) -> AbstractContextManager[None]:
    """Open around a backward: under DDP, ranks add up their gradients in this one, or leave it to a later one."""
    strategy = trainer.strategy
    return nullcontext() if now or not isinstance(strategy, ParallelStrategy) else strategy.block_backward_sync()
