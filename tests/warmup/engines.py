"""Engines that answer by rule, fail on demand, and write down what they were asked; for tests of generation."""

from __future__ import annotations

import json
import time
from pathlib import Path

from transformers import PreTrainedModel
from typing_extensions import override

from simct_pl.rollout.engine import Generation, RolloutEngine, SamplingParams


class ScriptedEngine(RolloutEngine):
    """Answers with ids drawn from the seed, after `delay` seconds a batch.

    Args:
        log: file to which each request is appended. fail_first: so many batches fail at first. bad_prompt: a batch with
            a prompt of so many ids always fails. empty_share: one seed in so many gives an empty response; 0: none.
    """

    def __init__(
        self,
        log: str | None = None,
        delay: float = 0.0,
        fail_first: int = 0,
        bad_prompt: int | None = None,
        empty_share: int = 0,
    ) -> None:
        self.log = Path(log) if log else None
        self.delay, self.fail_first = delay, fail_first
        self.bad_prompt, self.empty_share = bad_prompt, empty_share
        self.num_refreshed = self.num_closed = 0

    @override
    def refresh(self, model: PreTrainedModel, policy_version: int) -> None:
        self.num_refreshed += 1
        self.policy_version = policy_version

    @override
    def close(self) -> None:
        self.num_closed += 1

    @override
    def generate(
        self, prompts_ids: list[list[int]], seeds: list[int], sampling: SamplingParams, stop_ids: tuple[int, ...]
    ) -> list[Generation]:
        time.sleep(self.delay)
        if self.log is not None:
            with self.log.open("a") as file:
                file.writelines(json.dumps([ids, seed]) + "\n" for ids, seed in zip(prompts_ids, seeds, strict=True))
        if self.fail_first > 0:
            self.fail_first -= 1
            raise RuntimeError("out of memory, says the script")
        if any(len(ids) == self.bad_prompt for ids in prompts_ids):
            raise RuntimeError("this prompt is too much, says the script")
        return [self._answer(seed, sampling, stop_ids) for seed in seeds]

    def _answer(self, seed: int, sampling: SamplingParams, stop_ids: tuple[int, ...]) -> Generation:
        if self.empty_share and seed % self.empty_share == 0:
            return Generation([stop_ids[0]], [0.0], "stop")
        length = 1 + seed % 7
        ids = [10 + (seed >> i) % 10 for i in range(length)]
        if length == 7:
            return Generation(ids, [0.0] * length, "length")
        return Generation([*ids, stop_ids[0]], [0.0] * (length + 1), "stop")
