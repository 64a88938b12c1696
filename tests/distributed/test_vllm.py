"""VLLMEngine on two gloo ranks, each with an engine of its own or half of one: the launch of vllm_runs.py against one
process with the same global batch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests import warm
from tests.rollout.tiny_student import write_student

pytestmark = [pytest.mark.vllm, pytest.mark.slow]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vllm_ranks")
    student = write_student(folder / "student")
    done = warm.run(["tests.distributed.vllm_runs", str(folder), str(student)], warm.ROOT, timeout=500)
    assert done.returncode == 0, done.stderr[-6000:]
    return folder


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[dict[str, Any]]:
    """What each rank found."""
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(2)]


def test_each_engine_holds_the_sharded_students_weights_bit_for_bit(ranks: list[dict[str, Any]]) -> None:
    assert [found["apart"] for found in ranks] == [[], []]


def test_greedy_is_that_of_transformers_on_each_rank(ranks: list[dict[str, Any]]) -> None:
    for found in ranks:
        ours, theirs = found["greedy"]
        assert ours == theirs
