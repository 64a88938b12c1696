"""Sampling responses from an engine until there are some: what fails or comes back empty is asked again, and counted.

In: prompts as token ids. Out: generations, None where a request was given up. A second attempt draws from another seed,
so an empty response is not simply drawn again; what was answered is kept.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

from simct_pl.errors import RecipeError, RolloutError
from simct_pl.rollout.engine import Generation, RolloutEngine, SamplingParams, sample_seed
from simct_pl.rollout.retrying import ask_again

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SampleRequest:
    """One response to be made. prompt, sample: which. attempt: how often it has been asked before."""

    prompt: int
    sample: int
    prompt_ids: list[int]
    attempt: int = 0

    def seed(self, run_seed: int) -> int:
        """Depends on nothing but what is asked, and for which time."""
        return sample_seed(run_seed, self.attempt, self.prompt, self.sample)


class ResponseSampler:
    """Generates with an engine that may fail.

    Args:
        engine: with its weights. reset: gives it its weights again after a failure.
        text_of: a response's text, from its ids.
        max_retries: attempts after the first one, of a batch that fails and of a request whose response is empty.
            wait_seconds: before the first of them; doubled for each further one.

    counts: by reason: "failed_batches", "empty", "given_up_empty", "given_up_failed".

    Raises:
        RecipeError: for a number of retries below 0.
    """

    def __init__(
        self,
        engine: RolloutEngine,
        reset: Callable[[], None],
        text_of: Callable[[list[int]], str],
        sampling: SamplingParams,
        stop_ids: tuple[int, ...],
        seed: int,
        max_retries: int = 3,
        wait_seconds: float = 1.0,
    ) -> None:
        if max_retries < 0:
            raise RecipeError(f"max_retries is {max_retries}; expected 0 or more.")
        self.engine, self.reset, self.text_of = engine, reset, text_of
        self.sampling, self.stop_ids, self.seed = sampling, stop_ids, seed
        self.max_retries, self.wait_seconds = max_retries, wait_seconds
        self.counts: Counter[str] = Counter()

    def answers(self, requests: list[SampleRequest]) -> list[tuple[SampleRequest, Generation | None]]:
        """A response to each request, with the attempt that gave it.

        Raises:
            RolloutError: if the engine answers none of them, asked together and one by one.
        """
        results: list[tuple[SampleRequest, Generation | None]] = [(request, None) for request in requests]
        # Indices that are not answered yet; each round asks for them alone, with other seeds.
        left = list(range(len(requests)))
        for attempt in range(1 + self.max_retries):
            asked = [replace(requests[i], attempt=attempt) for i in left]
            for i, request, generation in zip(left, asked, self._together(asked), strict=True):
                results[i] = (request, generation)
            left = [i for i in left if self._is_empty(results[i][1])]
            if not left:
                break
            self.counts["empty"] += len(left)
        self.counts["given_up_empty"] += len(left)
        for i in left:
            results[i] = (results[i][0], None)
        return results

    def _is_empty(self, generation: Generation | None) -> bool:
        return generation is not None and not self.text_of(generation.response_ids).strip()

    def _together(self, requests: list[SampleRequest]) -> list[Generation | None]:
        """All in one batch; when that keeps failing, one by one: a bad request must not take the others along."""
        try:
            return list(self._ask(requests))
        except RolloutError as error:
            if len(requests) == 1:
                raise
            logger.warning("%s Asking its %d requests one by one.", error, len(requests))
        found: list[Generation | None] = []
        last: RolloutError | None = None
        for request in requests:
            try:
                found += self._ask([request])
            except RolloutError as error:
                last = error
                found.append(None)
        failed = found.count(None)
        # None of them at all: it is the engine that is broken, and no request.
        if last is not None and failed == len(requests):
            raise last
        self.counts["given_up_failed"] += failed
        return found

    def _ask(self, requests: list[SampleRequest]) -> list[Generation]:
        """One batch, asked again when the engine fails.

        Raises:
            RolloutError: when the last attempt fails too.
        """
        return ask_again(
            lambda: self._generate(requests),
            self.reset,
            self._count_failure,
            max_retries=self.max_retries,
            wait_seconds=self.wait_seconds,
        )

    def _count_failure(self, failure: str) -> None:
        self.counts["failed_batches"] += 1
        logger.warning("%s", failure)

    def _generate(self, requests: list[SampleRequest]) -> list[Generation]:
        return self.engine.generate(
            [request.prompt_ids for request in requests],
            [request.seed(self.seed) for request in requests],
            self.sampling,
            self.stop_ids,
        )
