"""VLLMEngine on two gloo ranks, each with an engine of its own or half of one: the launch of vllm_runs.py against one
process with the same global batch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests import warm
from tests.distributed.vllm_runs import engine, fit
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


@pytest.fixture(scope="module")
def one_rank(folder: Path) -> dict[str, Any]:
    """The fit in this process."""
    own = engine()
    try:
        return fit(folder, str(folder / "student"), own)[1].trace
    finally:
        own.close()


def test_each_engine_holds_the_sharded_students_weights_bit_for_bit(ranks: list[dict[str, Any]]) -> None:
    assert [found["apart"] for found in ranks] == [[], []]


def test_a_tied_weight_is_gathered_once(ranks: list[dict[str, Any]]) -> None:
    num_parameters, num_names, num_gathers = ranks[0]["gathers"]
    assert num_names == num_parameters + 1
    assert num_gathers == num_parameters


def test_greedy_is_that_of_transformers_on_each_rank(ranks: list[dict[str, Any]]) -> None:
    for rank, found in enumerate(ranks):
        assert found["greedy"] == found["transformers"]
        assert found["shared greedy"] == found["shared transformers"][rank::2]
        assert found["closed"]["greedy"] == found["transformers"]


@pytest.mark.parametrize("name", ["fsdp2", "ddp", "shared"])
def test_ranks_sample_what_one_rank_samples(name: str, ranks: list[dict[str, Any]], one_rank: dict[str, Any]) -> None:
    """Steps and held-out prompts, of which the second rank has none. `shared`: one copy of the model for both, HSDP."""
    first, second = (found[name] for found in ranks)
    assert first["held_out"] == one_rank["held_out"]
    assert len(first["held_out"]) == 5
    assert second["held_out"] == {}
    for own, other, together in zip(first["responses"], second["responses"], one_rank["responses"], strict=True):
        assert own.keys().isdisjoint(other)
        assert own | other == together
    for step in (*first["metrics"], *second["metrics"]):
        assert step["policy/lag"] == 0
        assert step["policy/mismatch_p99"] < 1e-3
    losses = [[step["loss/train"] for step in trace["metrics"]] for trace in (first, second, one_rank)]
    assert losses[0] == losses[1] == pytest.approx(losses[2], rel=1e-4)


@pytest.mark.parametrize(("name", "whole"), [("unequal", "transformers"), ("shared unequal", "shared transformers")])
def test_ranks_ask_unequally_often(name: str, whole: str, ranks: list[dict[str, Any]]) -> None:
    first, second = (found[name] for found in ranks)
    expected = ranks[0][whole]
    assert first == [expected[:1], expected[1:3], expected[3:], expected[:3]]
    assert second == [[], [expected[0][:1]]]


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [
        ("generate", ("RolloutError", "sample with vLLM: rank 1: RuntimeError: device lost."), None),
        ("refresh", ("RolloutError", "weights to vLLM: rank 1: RuntimeError: device lost."), None),
        ("after a refresh that failed", ("RolloutError", "call refresh() before generate()"), None),
        ("prompt", ("RolloutError", "rank 1: PromptDataError: A prompt has"), ("PromptDataError", "max_model_len=128")),
        ("memory", ("RolloutError", "(2 rank(s) together), and"), None),
        ("folder", ("RolloutError", "vLLM does not start: "), None),
    ],
)
def test_an_engine_that_dies_ends_the_work_of_every_rank(
    name: str, first: tuple[str, str], second: tuple[str, str] | None, ranks: list[dict[str, Any]]
) -> None:
    for found, (kind, said) in zip(ranks, (first, second or first), strict=True):
        assert found["failures"][name][0] == kind
        assert said in found["failures"][name][1]


def test_an_engine_that_was_closed_leaves_the_trainers_process_group(ranks: list[dict[str, Any]]) -> None:
    for found in ranks:
        assert found["closed"]["group"]
        assert found["closed"]["process"]
