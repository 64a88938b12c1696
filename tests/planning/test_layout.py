"""Trainer settings read as a layout, and those that cannot run."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from simct_pl.errors import RecipeError
from simct_pl.models.sharding import ShardedStrategy, Sharding
from simct_pl.planning.cost_inputs import GPUS
from simct_pl.planning.layout import Layout, compute_bytes


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
    layout = Layout.of(settings(devices=devices, num_nodes=2))
    assert layout.devices_per_node == expected
    assert layout.num_ranks == 2 * expected


@pytest.mark.parametrize("devices", ["abc", "", 0, "0", -2, [], ","])
def test_devices_that_are_none_are_refused(devices: int | str | list[int]) -> None:
    with pytest.raises(RecipeError, match=r"trainer\.devices is"):
        Layout.of(settings(devices=devices))


@pytest.mark.skipif(torch.cuda.is_available(), reason="about a machine without GPUs")
def test_without_a_gpu_here_one_is_assumed_and_said() -> None:
    layout = Layout.of(settings())
    assert (layout.gpu, layout.is_assumed) == ("h100", True)
    assert "assumed" in layout.words
    assert layout.memory == 80e9


def test_a_gpu_can_be_named() -> None:
    layout = Layout.of(settings(), "a100")
    assert layout.hardware == GPUS["a100"]
    assert not layout.is_assumed
    with pytest.raises(RecipeError, match="b200"):
        Layout.of(settings(), "b200")


def test_on_cpus_nothing_is_known_of_the_hardware() -> None:
    layout = Layout.of(settings(accelerator="cpu", devices="auto", max_steps=-1))
    assert layout.hardware is None
    assert layout.max_steps is None
    assert layout.memory == Layout.of(settings(accelerator="cpu", devices=2)).memory * 2


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
        Layout.of(settings(**changes)).check(sharding)


def test_products_run_in_what_the_recipe_says() -> None:
    plain = Layout.of(settings())
    assert compute_bytes(plain, None, 4) == 4
    assert compute_bytes(plain, Sharding(param_dtype="bfloat16"), 4) == 2
    assert compute_bytes(Layout.of(settings(precision="bf16-mixed")), None, 4) == 2
