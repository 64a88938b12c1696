"""What a fit needs of its trainer, checked before any weights load.

In: the trainer and the recipe's sharding. Out: nothing, or an error that says which two values do not fit.
"""

from __future__ import annotations

import math

import lightning as L
from lightning.pytorch.strategies import ModelParallelStrategy

from simct_pl.errors import RecipeError, RolloutError
from simct_pl.models.sharding import Sharding
from simct_pl.rollout.engine import RolloutProvider
from simct_pl.types import PromptBatch, Rollout

NO_ROLLOUTS = (
    "Nobody generates rollouts. Add callbacks.RolloutCallback to trainer.callbacks; in an overlay, "
    "`trainer.callbacks:` REPLACES the list: write `trainer.callbacks+:` to append to it."
)
STRATEGY = "{class_path: simct_pl.models.sharding.ShardedStrategy}"


def check_trainer(trainer: L.Trainer, sharding: Sharding | None) -> None:
    """Rollouts, precision and strategy.

    Raises:
        RolloutError: if no callback generates rollouts. RecipeError: if the trainer cannot run the rest.
    """
    if not any(isinstance(callback, RolloutProvider) for callback in trainer.callbacks):  # type: ignore[attr-defined]
        raise RolloutError(NO_ROLLOUTS)
    check_precision(trainer)
    check_sharding(trainer, sharding)


def rollouts_of(batch: PromptBatch) -> list[Rollout]:
    """The batch's responses.

    Raises:
        RolloutError: if nobody has written any.
    """
    if not batch.rollouts:
        raise RolloutError(NO_ROLLOUTS)
    return batch.rollouts


def check_anchor_weight(weight: float) -> float:
    """The weight, if it pulls towards the starting student or does nothing.

    Raises:
        RecipeError: for a weight below 0.
    """
    if not 0 <= weight < math.inf:
        raise RecipeError(f"anchor_weight is {weight}; expected 0 (nothing is loaded) or more.")
    return weight


def check_precision(trainer: L.Trainer) -> None:
    """Whether gradients keep their range.

    Raises:
        RecipeError: for float16.
    """
    if str(trainer.precision).startswith("16"):
        raise RecipeError(f"trainer.precision is {trainer.precision!r}; use bf16-mixed or 32: losses are not scaled.")


def check_sharding(trainer: L.Trainer, sharding: Sharding | None) -> None:
    """Whether the trainer can run what the recipe asks for.

    Raises:
        RecipeError: naming the two values that do not fit.
    """
    strategy = trainer.strategy
    if not isinstance(strategy, ModelParallelStrategy):
        if sharding is not None:
            raise RecipeError(
                f"sharding needs trainer.strategy: {STRATEGY}; this one is {type(strategy).__name__}. "
                "Set it, or leave model.init_args.sharding out."
            )
        return
    if sharding is None:
        raise RecipeError(
            f"trainer.strategy {type(strategy).__name__} shards nothing by itself. Set model.init_args.sharding, "
            "or take trainer.strategy=ddp."
        )
    tensor_parallel = strategy.device_mesh["tensor_parallel"].size()
    if tensor_parallel != 1:
        raise RecipeError(
            f"tensor_parallel_size is {tensor_parallel}, and no model is split that way here. "
            f"Set trainer.strategy: {STRATEGY}."
        )
    num_ranks = trainer.world_size
    if num_ranks % sharding.replicate:
        raise RecipeError(
            f"sharding.replicate={sharding.replicate} does not divide the {num_ranks} ranks; expected one of "
            f"{[n for n in range(1, num_ranks + 1) if num_ranks % n == 0]}."
        )
    backend = strategy.process_group_backend or ""
    if sharding.cpu_offload and strategy.root_device.type != "cpu" and "gloo" not in backend:
        raise RecipeError(
            f"sharding.cpu_offload needs a backend for host memory too; process_group_backend is {backend!r}. "
            'Set "cpu:gloo,cuda:nccl" in the init_args of trainer.strategy.'
        )
