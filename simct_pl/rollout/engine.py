"""What a rollout engine is: prompts of token ids in, sampled ids with their log-probabilities out."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import lightning as L
from transformers import PreTrainedModel

from simct_pl.errors import RecipeError


@dataclass(frozen=True)
class SamplingParams:
    """How responses are drawn.

    temperature: 0 is greedy. top_p: nucleus mass in (0, 1]. top_k: None is no limit. max_tokens: new tokens, stop
        included.

    Raises:
        RecipeError: for a value outside its range.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = None
    max_tokens: int = 256

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise RecipeError(f"max_tokens is {self.max_tokens}; expected at least 1, or no response can be sampled.")
        if self.temperature < 0:
            raise RecipeError(f"temperature is {self.temperature}; expected 0 (greedy) or more.")
        if not 0 < self.top_p <= 1:
            raise RecipeError(f"top_p is {self.top_p}; expected a number in (0, 1]; 1 switches it off.")
        if self.top_k is not None and self.top_k < 1:
            raise RecipeError(f"top_k is {self.top_k}; expected at least 1, or null to switch it off.")


@dataclass(frozen=True)
class Generation:
    """One response: ids (with the stop, if it stopped), log-probabilities at temperature 1 before truncation, "stop" |
    "length".
    """

    response_ids: list[int]
    logprobs: list[float]
    finish_reason: str


@dataclass(frozen=True)
class StudentSource:
    """What an engine with its own copy of the student starts from; its weights come with the first refresh.

    path: model folder or hub name. context: longest prompt + response in the student's tokens, None where its
        configuration does not say. trust_remote_code: whether its own Python code may run. num_ranks: of the trainer.
    """

    path: str
    context: int | None
    trust_remote_code: bool
    num_ranks: int


class RolloutEngine(ABC):
    """Generates with the student's current weights. `policy_version` says which weights those are; None before any
    refresh.

    A run calls check, and then in turns refresh, generate, finish. Each rank refreshes and finishes; in between it may
    generate as often as it likes. An engine outlives `fit` and `validate`, which follow each other in a run; close()
    ends it before the process does.
    """

    policy_version: int | None = None
    # For plans: where its weights lie (planning.step.StepShape.engine), and the share of a GPU's memory that it
    # takes whatever it needs.
    placement: Literal["copy", "student", "server"] = "copy"
    reserved_share: float | None = None

    def check(self, student: StudentSource) -> None:  # noqa: B027 - most engines need none
        """Refuse what cannot run, before any weights load, and remember where to start from. By default, nothing.

        Raises:
            SimctError: of the kind that fits.
        """

    def finish(self) -> None:  # noqa: B027 - the same
        """Nothing more is asked until the next refresh. Until the other ranks have finished too, an engine may answer
        for them; then it may give memory back. By default, nothing.
        """

    def close(self) -> None:  # noqa: B027 - the same
        """Give back what the engine holds; a later refresh starts it again. By default, nothing."""

    @abstractmethod
    def refresh(self, model: PreTrainedModel, policy_version: int) -> None:
        """Take over the student's weights; afterwards `policy_version` equals the argument."""

    @abstractmethod
    def generate(
        self, prompts_ids: list[list[int]], seeds: list[int], sampling: SamplingParams, stop_ids: tuple[int, ...]
    ) -> list[Generation]:
        """One response a prompt, in order. The same prompt, seed and weights give the same response in any batch."""


class RolloutProvider(L.Callback):
    """A callback that fills every batch's `rollouts` before the step; DistillModule refuses to start without one.

    sampling, num_samples: of training rollouts, responses a prompt. engine: who generates. on_policy: whether the
        responses are the student's own, some of them at least.
    """

    on_policy: bool = True

    sampling: SamplingParams
    num_samples: int
    engine: RolloutEngine


def sample_seed(run_seed: int, step: int, prompt_index: int, sample_index: int) -> int:
    """A 63-bit seed that depends on nothing but where the sample stands in the run."""
    # A hash, so that neighbouring steps and samples have unrelated streams. Its lowest bit goes: 64-bit seeds are
    # signed.
    key = f"{run_seed}/{step}/{prompt_index}/{sample_index}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest()) >> 1
