"""Rollouts by a vLLM server in another process or on another host (`python -m simct_pl serve`), over HTTP.

In: the student, written to a folder that both sides see; prompts as token ids. Out: sampled ids with
log-probabilities at temperature 1. Every response says which weights sampled it: when a server was restarted, that is
noticed, it gets the weights again, and the prompt is asked again. Needs no vLLM on this side.
"""

from __future__ import annotations

import shutil
import uuid
from abc import abstractmethod
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn
from transformers import PreTrainedModel
from typing_extensions import override

from simct_pl.errors import RecipeError, RolloutError, SimctError
from simct_pl.models.ranks import objects_of_ranks, rank
from simct_pl.rollout.engine import Generation, RolloutEngine, SamplingParams, StudentSource
from simct_pl.rollout.vllm_client import Reply, VLLMClient
from simct_pl.rollout.vllm_requests import check_prompt_lengths, sampling_arguments, to_generation
from simct_pl.rollout.vllm_weights import named_weights, write_weights

MAX_ROUNDS = 3


class ServerEngine(RolloutEngine):
    """Generates on a server, and takes no response of other weights than it was last refreshed with.

    Subclasses say how weights get there, and what to do when the server has lost them.

    Args: see VLLMServerEngine.

    Raises:
        RecipeError: for a value outside its range.
    """

    placement = "server"

    def __init__(self, url: str, max_concurrency: int, timeout: float, retries: int, key_variable: str) -> None:
        if not url.startswith(("http://", "https://")):
            raise RecipeError(f"url is {url!r}; expected http://HOST:PORT or https://HOST:PORT.")
        if max_concurrency < 1:
            raise RecipeError(f"max_concurrency is {max_concurrency}; expected at least 1.")
        if timeout <= 0:
            raise RecipeError(f"timeout is {timeout}; expected more than 0 seconds.")
        if retries < 0:
            raise RecipeError(f"retries is {retries}; expected 0 or more.")
        self.max_concurrency = max_concurrency
        self.client = VLLMClient(url, key_variable, timeout, retries, max_concurrency)
        self._label = ""  # of the weights that the server should hold
        self._max_model_len = 0

    @abstractmethod
    def _send(self, model: PreTrainedModel) -> None:
        """Bring the student's weights to the server under `_label`. Collective; the first rank talks to the server."""

    @abstractmethod
    def _restore(self, held: str) -> None:
        """The server holds other weights than `_label`, as after a restart."""

    def check(self, student: StudentSource) -> None:
        """The server must answer, accept the key and be one that takes weights; it may still be starting."""
        self._max_model_len = self.client.max_model_len()
        self.client.held_weights()

    def refresh(self, model: PreTrainedModel, policy_version: int) -> None:
        """Bring the student's weights to the server. Collective.

        Raises:
            RolloutError: if the server cannot be reached or refuses.
        """
        self.policy_version = None  # until everything has arrived
        # Labels of two runs, or of a run and the one that it resumes, are never the same.
        self._label = objects_of_ranks(f"step-{policy_version}-{uuid.uuid4().hex[:12]}")[0]
        self._send(model)
        self.policy_version = policy_version

    def generate(
        self, prompts_ids: list[list[int]], seeds: list[int], sampling: SamplingParams, stop_ids: tuple[int, ...]
    ) -> list[Generation]:
        """As RolloutEngine says. A response ends as "length" at max_tokens or at the server's max_model_len.

        Raises:
            RolloutError: before any refresh, if the server stays away, or if it keeps losing the weights it was given.
                PromptDataError: for a prompt that leaves no room.
        """
        if self.policy_version is None:
            raise RolloutError(f"{type(self).__name__} has no weights yet; call refresh() before generate().")
        check_prompt_lengths(prompts_ids, self._max_model_len)
        asked = [sampling_arguments(sampling, seed, stop_ids) for seed in seeds]
        replies: dict[int, Reply] = {}
        for round_ in range(MAX_ROUNDS):
            # Something is missing, so the server may have restarted in between and lost its weights.
            if round_ > 0 and (held := self.client.held_weights()) != self._label:
                self._restore(held)
            missing = [i for i in range(len(asked)) if i not in replies]
            for i, reply in self._ask_all([(i, prompts_ids[i], asked[i]) for i in missing]):
                # A reply of any other weights, even for part of its tokens, is dropped and asked again.
                if reply.weights == {self._label}:
                    replies[i] = reply
            if len(replies) == len(asked):
                break
        else:
            raise RolloutError(
                f"The vLLM server at {self.client.url} lost its weights {MAX_ROUNDS} times within one batch. Its log "
                "says whether it keeps restarting; another run must not use it at the same time."
            )
        ordered = [replies[i] for i in range(len(asked))]
        return [to_generation(r.response_ids, r.logprobs, r.finish_reason, stop_ids) for r in ordered]

    def _ask_all(self, asked: list[tuple[int, list[int], dict[str, Any]]]) -> Iterator[tuple[int, Reply]]:
        """All requests at once, up to max_concurrency under way; yields (index, reply) as they finish."""
        with ThreadPoolExecutor(self.max_concurrency, thread_name_prefix="vllm") as pool:
            futures = {pool.submit(self.client.generate, ids, arguments): i for i, ids, arguments in asked}
            try:
                for future in as_completed(futures):
                    yield futures[future], future.result()
            finally:
                pool.shutdown(cancel_futures=True)


class VLLMServerEngine(ServerEngine):
    """Generates on a server that `python -m simct_pl serve` started with the student's folder. Any number of ranks.

    Args:
        url: of the server, for example http://127.0.0.1:8000.
        weights_folder: where refreshed weights are written; the server must see it under the same absolute path.
        max_concurrency: requests under way at a time, on each rank.
        timeout: seconds that one request may take.
        retries: how often a request is sent again when the server does not answer; waits grow to 10 s, so that 15
            retries bridge two minutes, as a restart of the server takes.
        key_variable: environment variable with the server's key.

    Raises:
        RecipeError: for a value outside its range.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        weights_folder: str = "runs/vllm_weights",
        max_concurrency: int = 128,
        timeout: float = 600.0,
        retries: int = 15,
        key_variable: str = "VLLM_API_KEY",
    ) -> None:
        super().__init__(url, max_concurrency, timeout, retries, key_variable)
        self.weights_folder = Path(weights_folder).expanduser().absolute()
        self._written: Path | None = None  # what the server was told to load last

    def close(self) -> None:
        """Remove the weights that were written last; the server stays as it is."""
        if self._written is not None and rank() == 0:
            shutil.rmtree(self._written, ignore_errors=True)
        self._written = self.policy_version = None

    @override
    def _send(self, model: PreTrainedModel) -> None:
        """Write a folder, whole or not at all, and have the server load it; then remove the one before.

        Raises:
            ExportError: if the folder cannot be written.
        """
        before, self._written = self._written, self.weights_folder / self._label
        failure: SimctError | None = None
        if rank() == 0:
            try:
                write_weights(model, self._written)
                self._load()
            except SimctError as error:
                failure = error
        else:
            # Gathering is collective: the other ranks take part in it, and throw away what they get.
            for _ in named_weights(model):
                pass
        # All ranks learn of a failure on the first one; one that went on alone would wait for it for ever.
        if (failure := objects_of_ranks(failure)[0]) is not None:
            raise failure
        if rank() == 0 and before is not None:
            shutil.rmtree(before, ignore_errors=True)

    @override
    def _restore(self, held: str) -> None:
        rank_zero_warn(f"The vLLM server holds weights {held!r} and not {self._label!r}; it gets them again.")
        self._load()

    def _load(self) -> None:
        assert self._written is not None
        self.client.load_weights(self._written, self._label)
