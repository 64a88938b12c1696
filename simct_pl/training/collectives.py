"""What the ranks of a run have to agree on: sums over all of them, how often their models run, and when they exchange
gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import lightning as L
import torch
from lightning.pytorch.strategies import ParallelStrategy
from torch import Tensor

Item = TypeVar("Item")


def gather_scalars(module: L.LightningModule, value: float | Sequence[float]) -> Tensor:
    """The value, or values, of every rank, float64 [ranks] or [ranks, values]."""
    own = torch.tensor(value, dtype=torch.float64, device=module.device)
    gathered = module.all_gather(own)
    assert isinstance(gathered, Tensor)
    return gathered.reshape(-1, *own.shape)


def pad_to_max_over_ranks(module: L.LightningModule, items: Sequence[Item], idle: Item) -> list[Item]:
    """The items, and as many idle ones as it takes for every rank to have the same number.

    Models run once an item. Ranks that share one, or its gradients, would wait forever for a rank that stopped early.
    """
    most = int(gather_scalars(module, len(items)).max())
    return [*items, *[idle] * (most - len(items))]


def exchange_gradients(trainer: L.Trainer, now: bool) -> AbstractContextManager[None]:
    """Open around a backward: under DDP, ranks add up their gradients in this one, or leave it to a later one.

    Under FSDP2 they do so in every backward: putting it off would spare links, but leave every rank with gradients of
    the whole model until then.
    """
    strategy = trainer.strategy
    return nullcontext() if now or not isinstance(strategy, ParallelStrategy) else strategy.block_backward_sync()


def exchange_device(module: L.LightningModule) -> torch.device:
    """Where the ranks exchange tensors; the CPU without a trainer."""
    return torch.device("cpu") if module._trainer is None else module.trainer.strategy.root_device
