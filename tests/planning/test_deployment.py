"""Trainer settings read as a deployment, and those that cannot run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy

from simct_pl.errors import RecipeError
from simct_pl.models.sharding import ShardedStrategy, Sharding
from simct_pl.planning.deployment import Deployment
from simct_pl.planning.step import GPU_MEMORY


def settings(**changes: Any) -> dict[str, Any]:
    base = {
        "accelerator": "gpu",
        "devices": 8,
        "num_nodes": 1,
        "strategy": "auto",
        "precision": "32-true",
        "max_steps": 10,
    }
    return {**base, **changes}


@pytest.mark.parametrize(("devices", "expected"), [(8, 8), ("4", 4), ("0,2", 2), ([1, 3, 5], 3)])
def test_devices_are_counted(devices: int | str | list[int], expected: int) -> None:
    deployment = Deployment.of(settings(devices=devices, num_nodes=2))
    assert deployment.devices_per_node == expected
    assert deployment.num_ranks == 2 * expected


@pytest.mark.parametrize("devices", ["abc", "", 0, "0", -2, [], ","])
def test_devices_that_are_none_are_refused(devices: int | str | list[int]) -> None:
    with pytest.raises(RecipeError, match=r"trainer\.devices is"):
        Deployment.of(settings(devices=devices))


@pytest.mark.skipif(torch.cuda.is_available(), reason="about a machine without GPUs")
def test_without_a_gpu_here_one_is_assumed_and_said() -> None:
    deployment = Deployment.of(settings())
    assert (deployment.gpu, deployment.is_assumed) == ("h100", True)
    assert "assumed" in deployment.words
    assert deployment.memory == 80e9


def test_a_gpu_can_be_named() -> None:
    deployment = Deployment.of(settings(), "a100")
    assert deployment.memory == GPU_MEMORY["a100"]
    assert not deployment.is_assumed
    with pytest.raises(RecipeError, match="b200"):
        Deployment.of(settings(), "b200")


def test_cpu_processes_share_this_machines_memory() -> None:
    deployment = Deployment.of(settings(accelerator="cpu", devices="auto", max_steps=-1))
    assert deployment.gpu is None
    assert deployment.max_steps is None
    assert deployment.memory == Deployment.of(settings(accelerator="cpu", devices=2)).memory * 2


@pytest.mark.parametrize(
    ("changes", "sharding", "words"),
    [
        ({}, Sharding(), "go together"),
        ({"strategy": ShardedStrategy()}, None, "go together"),
        ({"strategy": ShardedStrategy()}, Sharding(replicate=3), "does not divide the 8 ranks"),
        ({"precision": "16-mixed"}, None, "bf16-mixed"),
    ],
)
def test_what_a_trainer_would_refuse_is_refused(changes: dict[str, Any], sharding: Sharding | None, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        Deployment.of(settings(**changes)).check(sharding)


@pytest.mark.parametrize(
    ("strategy", "devices", "expected"),
    [
        ("auto", 1, False),
        ("auto", 2, True),
        ("ddp", 1, True),
        (DDPStrategy(), 2, True),
        (DDPStrategy(gradient_as_bucket_view=True), 2, False),
        (ShardedStrategy(), 2, False),
    ],
)
def test_ddp_keeps_gradients_twice_unless_they_are_its_buckets(strategy: Any, devices: int, expected: bool) -> None:
    assert Deployment.of(settings(strategy=strategy, devices=devices)).buckets == expected
