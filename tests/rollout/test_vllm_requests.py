"""What both vLLM engines say and hear; none of it needs vLLM."""

from __future__ import annotations

import pytest

from simct_pl.errors import PromptDataError, RolloutError
from simct_pl.rollout.engine import Generation, SamplingParams
from simct_pl.rollout.vllm_requests import check_prompt_lengths, sampling_arguments, to_generation

STOPS = (3, 4)


def test_no_default_of_the_model_or_the_server_is_left_open() -> None:
    found = sampling_arguments(SamplingParams(temperature=0.6, top_p=0.9, max_tokens=7), 11, STOPS)
    expected = {"temperature": 0.6, "top_p": 0.9, "top_k": 0, "max_tokens": 7, "seed": 11, "stop_token_ids": [3, 4]}
    assert found | expected == found
    assert found["ignore_eos"] is True
    assert found["repetition_penalty"] == 1.0
    assert sampling_arguments(SamplingParams(top_k=5), 0, STOPS)["top_k"] == 5


def test_a_response_is_stopped_or_cut() -> None:
    assert to_generation([5, 4], [-1.0, -2.0], "stop", STOPS) == Generation([5, 4], [-1.0, -2.0], "stop")
    assert to_generation((5, 6), (-1.0, -2.0), "length", STOPS) == Generation([5, 6], [-1.0, -2.0], "length")


@pytest.mark.parametrize(
    ("ids", "logprobs", "reason"),
    [
        ([5, 6], [-1.0, -1.0], "stop"),  # stopped by something that is no stop of ours
        ([5, 4], [-1.0, -1.0], "length"),
        ([5, 6], [-1.0, -1.0], "abort"),
        ([5, 6], [-1.0], "length"),
        ([], [], "length"),
    ],
)
def test_a_response_that_is_neither_is_refused(ids: list[int], logprobs: list[float], reason: str) -> None:
    with pytest.raises(RolloutError, match=reason):
        to_generation(ids, logprobs, reason, STOPS)


def test_a_prompt_without_room_for_a_token_is_refused() -> None:
    check_prompt_lengths([[1] * 9], 10)
    with pytest.raises(PromptDataError, match="10 tokens"):
        check_prompt_lengths([[1], [1] * 10], 10)
