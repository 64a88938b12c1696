"""What both vLLM engines say and hear: our sampling in vLLM's words, and a response of vLLM's as a Generation.

In: SamplingParams, a seed, stop ids; token ids, log-probabilities and finish reason of a response. Needs no vLLM.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from simct_pl.errors import PromptDataError, RolloutError
from simct_pl.rollout.engine import Generation, SamplingParams


def sampling_arguments(sampling: SamplingParams, seed: int, stop_ids: tuple[int, ...]) -> dict[str, Any]:
    """Arguments of vLLM's SamplingParams, every default that matters written out.

    The model's own end token stops nothing unless it is one of stop_ids, and its generation config is not asked.
    """
    return {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k or 0,  # 0: no limit
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "max_tokens": sampling.max_tokens,
        "seed": seed,
        "stop_token_ids": list(stop_ids),
        "ignore_eos": True,
        "logprobs": 0,  # of the sampled token alone
        "detokenize": False,
        "watermarking": False,
    }


def to_generation(
    response_ids: Sequence[int], logprobs: Sequence[float], finish_reason: str | None, stop_ids: tuple[int, ...]
) -> Generation:
    """A response as the trainer reads it.

    Raises:
        RolloutError: for a response that was neither stopped nor cut, or whose parts do not fit together.
    """
    ids = list(response_ids)
    stopped = bool(ids) and ids[-1] in stop_ids
    if finish_reason != ("stop" if stopped else "length") or len(ids) != len(logprobs) or not ids:
        raise RolloutError(
            f"vLLM ended a response of {len(ids)} tokens and {len(logprobs)} log-probabilities as {finish_reason!r}; "
            "expected 'stop' after a stop token and 'length' without one. Its log says more."
        )
    return Generation(ids, list(logprobs), "stop" if stopped else "length")


def check_prompt_lengths(prompts_ids: list[list[int]], max_model_len: int) -> None:
    """Every prompt must leave room for a token.

    Raises:
        PromptDataError: naming the longest prompt.
    """
    longest = max(map(len, prompts_ids), default=0)
    if longest >= max_model_len:
        raise PromptDataError(
            f"A prompt has {longest} tokens, and vLLM was started with max_model_len={max_model_len}. "
            "Raise max_model_len, or leave long prompts out (max_prompt_chars)."
        )
