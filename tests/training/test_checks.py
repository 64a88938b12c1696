"""Sharding and strategy: what does not fit is refused, by the values' names."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy

from simct_pl.errors import RecipeError
from simct_pl.models.sharding import ShardedStrategy, Sharding
from simct_pl.training.checks import check_sharding


def trainer_of(strategy: Any, world_size: int = 4, tensor_parallel: int = 1, device: str = "cpu") -> Any:
    """What the check reads of a trainer."""
    if isinstance(strategy, ModelParallelStrategy):
        strategy.parallel_devices = [torch.device(device, 0)]
        strategy._local_rank = 0
        strategy._device_mesh = cast(Any, {"tensor_parallel": SimpleNamespace(size=lambda: tensor_parallel)})
    return SimpleNamespace(strategy=strategy, world_size=world_size)


@pytest.mark.parametrize(
    ("trainer", "sharding", "expected"),
    [
        (trainer_of(DDPStrategy()), Sharding(), "sharding needs trainer.strategy.*DDPStrategy"),
        (trainer_of(ShardedStrategy()), None, "shards nothing by itself.*model.init_args.sharding"),
        (trainer_of(ModelParallelStrategy(), tensor_parallel=2), Sharding(), "tensor_parallel_size is 2"),
        (trainer_of(ShardedStrategy()), Sharding(replicate=3), r"replicate=3 does not divide the 4 .*\[1, 2, 4\]"),
        (
            trainer_of(ShardedStrategy(process_group_backend="nccl"), device="cuda"),
            Sharding(cpu_offload=True),
            "cpu_offload.*process_group_backend is 'nccl'",
        ),
    ],
    ids=["no strategy", "no sharding", "tensor parallel", "replicas", "offload"],
)
def test_combinations_that_cannot_run_are_refused(trainer: Any, sharding: Sharding | None, expected: str) -> None:
    with pytest.raises(RecipeError, match=expected):
        check_sharding(trainer, sharding)


@pytest.mark.parametrize(
    ("trainer", "sharding"),
    [
        (trainer_of(DDPStrategy()), None),
        (trainer_of(ShardedStrategy()), Sharding(replicate=2, cpu_offload=True)),
        (
            trainer_of(ShardedStrategy(process_group_backend="cpu:gloo,cuda:nccl"), device="cuda"),
            Sharding(cpu_offload=True),
        ),
    ],
    ids=["ddp", "hsdp", "offload"],
)
def test_combinations_that_run_pass(trainer: Any, sharding: Sharding | None) -> None:
    check_sharding(trainer, sharding)


@pytest.mark.parametrize("values", [{"replicate": 0}, {"param_dtype": "float16"}, {"reduce_dtype": "float16"}], ids=str)
def test_values_outside_their_range_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match="sharding"):
        Sharding(**values)
