"""The trainer's process around vLLM: whether its memory is there, and that it gets its process back. Needs no vLLM."""

from __future__ import annotations

import os
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from simct_pl.errors import RecipeError, RolloutError
from simct_pl.models.ranks import failing_together, raise_together
from simct_pl.rollout import vllm_process
from simct_pl.rollout.vllm_process import GIB, MemoryShare, check_memory, kept_process_group, undisturbed


def of_ranks(monkeypatch: pytest.MonkeyPatch, shares: list[MemoryShare]) -> None:
    monkeypatch.setattr(vllm_process, "objects_of_ranks", lambda own: shares)


def test_a_gpu_that_has_less_free_than_its_share_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    fits, other = (MemoryShare(f"GPU {i} of rank {i}, a", 24 * GIB, 30 * GIB, 80 * GIB) for i in range(2))
    of_ranks(monkeypatch, [fits, other])
    check_memory(fits)
    of_ranks(monkeypatch, [fits, replace(other, free=20 * GIB)])
    said = r"24\.0 GiB on GPU 1 of rank 1, a \(1 rank.*20\.0 of 80\.0 GiB are free.*to at most 0\.25"
    with pytest.raises(RolloutError, match=said):  # on the first rank too, whose own GPU has room
        check_memory(fits)


def test_the_ranks_of_a_host_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    half = MemoryShare("a", 6 * GIB, 10 * GIB, 20 * GIB)
    of_ranks(monkeypatch, [half, MemoryShare("b", 6 * GIB, 10 * GIB, 20 * GIB)])
    check_memory(half)
    of_ranks(monkeypatch, [half, half])
    with pytest.raises(RolloutError, match=r"12\.0 GiB on a \(2 rank.*at most 0\.25"):
        check_memory(half)


@pytest.mark.parametrize(
    ("share", "cache", "expected"), [(0.3, None, 24), (0.3, 4 * GIB, 24), (0.1, 4 * GIB, 9)], ids=str
)
def test_a_gpus_share_holds_weights_and_cache(
    share: float, cache: int | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM wants its share free whatever it takes; and what it takes may be more."""
    cuda = SimpleNamespace(
        is_available=lambda: True,
        empty_cache=lambda: None,
        mem_get_info=lambda: (70 * GIB, 80 * GIB),
        current_device=lambda: 3,
    )
    monkeypatch.setattr(vllm_process.torch, "cuda", cuda)
    found = MemoryShare.here(share, 5 * GIB, cache)
    assert (found.wanted, found.free, found.total) == (pytest.approx(expected * GIB), 70 * GIB, 80 * GIB)
    assert found.where.startswith("GPU 3 of rank 0, ")


def test_the_process_is_as_it_was() -> None:
    before = dict(os.environ), torch.set_num_threads, torch.get_num_threads()
    with undisturbed():
        assert os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
        os.environ["VLLM_DIST_IDENT"] = "left by vLLM"
        torch.set_num_threads = lambda number: None
    assert before == (dict(os.environ), torch.set_num_threads, torch.get_num_threads())


def test_vllms_groups_go_and_the_trainers_stays() -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        theirs = dist.new_group([0])
        with kept_process_group():
            dist.destroy_process_group(theirs)
            dist.destroy_process_group()
        assert dist.is_initialized()
        assert dist.distributed_c10d._world.pg_map.keys() == {dist.group.WORLD}
    finally:
        dist.destroy_process_group()
    assert not dist.is_initialized()


def test_a_single_rank_fails_in_its_own_words() -> None:
    with pytest.raises(KeyError, match="theirs"), failing_together("work"):
        raise KeyError("theirs")
    with pytest.raises(RecipeError, match="ours"):
        raise_together("work", RecipeError("ours"))
    assert raise_together("work", None, told=7) == [7]
