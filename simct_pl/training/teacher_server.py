"""A teacher behind HTTP: a vLLM server, anybody's, that says how likely tokens are.

In: prompts and responses as the teacher's ids. Out: rows that the loss reads as those of a model that is here, made of
what the server lists of each position (vLLM's `prompt_logprobs`). Before a run begins the server has to show that it
has the same tokenizer and template, and that it says the same of a text alone and in a batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from itertools import accumulate
from pathlib import PurePath
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from simct_pl.errors import RecipeError, RolloutError, TokenizerError
from simct_pl.losses.base import Objective
from simct_pl.losses.dual_space import DualSpaceObjective
from simct_pl.models.lm_head import ResponseStates
from simct_pl.rollout.vllm_client import VLLMClient
from simct_pl.tokenization.model_tokenizer import ModelTokenizer
from simct_pl.training.listed_rows import Listed, ListedHead, pack_rows, unlisted_mass

PROBES = ("The total is 202.", "def f(x):\n    return  x + 1\n", "été 東京 🙂")
MESSAGES = ({"role": "user", "content": "13+25+7?"},)


class TeacherServer:
    """Where a teacher's distribution comes from when its weights are not here. Any number of ranks ask it.

    Args:
        url: of a vLLM server, for example http://127.0.0.1:8000, started with --max-logprobs of at least top_k.
        top_k: tokens that the server lists of each position, beside the one that is there; -1: all. What is not listed
            has its sum alone, in equal parts: see `teacher/unlisted_mass`.
        model: as the server calls it; by default the first that it serves.
        max_concurrency: requests under way at a time, on each rank.
        timeout: seconds that one request may take. retries: how often it is sent again when nobody answers.
        key_variable: environment variable with the server's key; null: it asks for none.
        tolerance: largest total variation between two answers about the same text, alone and in a batch.

    Raises:
        RecipeError: for a value outside its range.
    """

    def __init__(
        self,
        url: str,
        top_k: int = 128,
        model: str | None = None,
        max_concurrency: int = 32,
        timeout: float = 600.0,
        retries: int = 15,
        key_variable: str | None = "VLLM_API_KEY",
        tolerance: float = 0.02,
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise RecipeError(f"url is {url!r}; expected http://HOST:PORT or https://HOST:PORT.")
        if top_k < 1 and top_k != -1:
            raise RecipeError(f"top_k is {top_k}; expected at least 1 token a position, or -1 for all of them.")
        if max_concurrency < 1 or timeout <= 0 or retries < 0:
            raise RecipeError(
                f"max_concurrency={max_concurrency}, timeout={timeout}, retries={retries}; expected at least 1, more "
                "than 0 seconds, and 0 or more."
            )
        if not 0 < tolerance <= 1:
            raise RecipeError(f"tolerance is {tolerance}; expected a total variation in (0, 1].")
        self.top_k, self.tolerance, self.max_concurrency = top_k, tolerance, max_concurrency
        start = f"`vllm serve TEACHER --max-logprobs {top_k}`, on the host and port of this url"
        self.client = VLLMClient(url, key_variable, timeout, retries, max_concurrency, start)
        self.model = model

    @cached_property
    def served(self) -> dict[str, Any]:
        """What the server says of the model that it serves.

        Raises:
            RecipeError: if it serves none of that name. RolloutError: if it does not answer.
        """
        served = self.client.models()
        named = [entry for entry in served if self.model in (None, entry["id"])]
        if not named:
            raise RecipeError(
                f"model is {self.model!r}; the server at {self.client.url} serves "
                f"{', '.join(repr(entry['id']) for entry in served)}."
            )
        return named[0]

    @property
    def context(self) -> int:
        """Longest prompt + response, in tokens; vLLM wants room for one more, which it samples and nobody reads."""
        return int(self.served["max_model_len"]) - 1

    # ---- before a run: is it the teacher that the recipe names? ----

    def check(self, path: str, tokenizer: ModelTokenizer, objective: Objective | DualSpaceObjective) -> None:
        """See that the server is there, serves this teacher, is steady, and gives what the objective reads.

        path: the teacher's, whose tokenizer and template the server must have.

        Raises:
            RecipeError: for an objective that reads hidden states, or a model that is not served.
            RolloutError: if it does not answer, lists too little, or says another thing each time.
            TokenizerError: if it reads a text differently. Another template or name is said, and not refused.
        """
        if isinstance(objective, DualSpaceObjective):
            raise RecipeError(
                f"{type(objective).__name__} reads the teacher's hidden states, and a server gives log-probabilities. "
                "Leave teacher_server out, or take another objective."
            )
        self.model = self.served["id"]
        root = str(self.served.get("root") or self.model)
        if PurePath(root).name != PurePath(path).name:
            rank_zero_warn(f"The server at {self.client.url} serves {root!r}, and the recipe's teacher is {path!r}.")
        self._check_tokenizer(tokenizer)
        self._check_steady([tokenizer.encode(text) for text in PROBES])

    def _check_tokenizer(self, tokenizer: ModelTokenizer) -> None:
        for text in PROBES:
            found = self.client.tokenize({"prompt": text, "add_special_tokens": False, "model": self.model})
            if found != tokenizer.encode(text):
                raise TokenizerError(
                    f"The server at {self.client.url} reads {text!r} as {found[:12]}, and the recipe's teacher as "
                    f"{tokenizer.encode(text)[:12]}. `teacher` has to name the model that is served."
                )
        expected = tokenizer.render_prompt(MESSAGES)
        asked = {"messages": list(MESSAGES), "add_generation_prompt": True, "model": self.model}
        if (found := self.client.tokenize(asked)) != expected:
            # The ids that are sent are ours, so that this alone spoils nothing: template arguments may be the reason.
            rank_zero_warn(
                f"The server at {self.client.url} renders a question as {found[:12]}…, and this run as "
                f"{expected[:12]}…: another chat template, or other arguments of it. The run's own is used."
            )

    def _check_steady(self, texts: list[list[int]]) -> None:
        """Ask about the same texts alone, again, and side by side."""
        alone = [self._ask(ids[:1], ids[1:]) for ids in texts]
        again = [self._ask(ids[:1], ids[1:]) for ids in texts]
        with ThreadPoolExecutor(self.max_concurrency, thread_name_prefix="teacher") as pool:
            together = [*pool.map(lambda ids: self._ask(ids[:1], ids[1:]), texts * 2)][: len(texts)]
        for name, other in (("asked twice", again), ("asked alone and in a batch", together)):
            worst = max(
                total_variation(one, two)
                for first, second in zip(alone, other, strict=True)
                for one, two in zip(first, second, strict=True)
            )
            if worst > self.tolerance:
                raise RolloutError(
                    f"The server at {self.client.url} differs by {worst:.3g} (total variation) on the same text "
                    f"{name}; at most {self.tolerance:g} was expected. Serve it with a dtype of more bits or without "
                    "quantised kernels, or raise tolerance if that much noise in every row is wanted."
                )

    # ---- in a run ----

    def rows(self, prompt_ids: Sequence[Sequence[int]], response_ids: Sequence[Sequence[int]]) -> list[list[Listed]]:
        """For each response a row a token, in order."""
        with ThreadPoolExecutor(self.max_concurrency, thread_name_prefix="teacher") as pool:
            return list(pool.map(self._ask, prompt_ids, response_ids))

    def _ask(self, prompt_ids: Sequence[int], response_ids: Sequence[int]) -> list[Listed]:
        """What the server lists in front of each token of a response."""
        if not response_ids:
            return []
        ids = [*prompt_ids, *response_ids]
        found = self.client.prompt_logprobs(ids, self.top_k, self.model)[len(prompt_ids) :]
        listed = [Listed(tuple(row), tuple(row.values())) for row in found if row]
        if len(listed) < len(response_ids) or not all(map(math.isfinite, (v for row in listed for v in row.logprobs))):
            raise RolloutError(
                f"The server at {self.client.url} lists {len(listed)} positions of {len(response_ids)}, or infinite "
                "log-probabilities among them; expected those of every token."
            )
        return listed


def total_variation(one: Listed, two: Listed) -> float:
    """Of two rows, over what both list; the rest of each as one event."""
    left, right = ({k: math.exp(v) for k, v in zip(row.ids, row.logprobs, strict=True)} for row in (one, two))
    both = left.keys() & right.keys()
    rest = [1 - sum(side[k] for k in both) for side in (left, right)]
    return (sum(abs(left[k] - right[k]) for k in both) + abs(rest[0] - rest[1])) / 2


class RemoteTeacher:
    """A server in the place of FrozenTeacher.

    vocab_size: rows of the teacher's head.
    """

    def __init__(self, server: TeacherServer, vocab_size: int, device: torch.device) -> None:
        self.server, self.vocab_size = server, vocab_size
        self.head = ListedHead.over(vocab_size, device)
        self._unlisted: list[float] = []

    def to(self, device: torch.device) -> RemoteTeacher:
        if self.head.projection.weight.device != device:
            self.head = ListedHead.over(self.vocab_size, device)
        return self

    def states(self, prompt_ids: Sequence[Sequence[int]], response_ids: Sequence[Sequence[int]]) -> ResponseStates:
        """Packed rows of all responses in the order given, [rows, 1 + 2 k] fp32; see listed_rows."""
        rows = [row for of_one in self.server.rows(prompt_ids, response_ids) for row in of_one]
        if torch.is_grad_enabled():  # of training steps, and not of the validations between them
            self._unlisted += map(unlisted_mass, rows)
        packed_RX: Tensor = pack_rows(rows, self.vocab_size).to(self.head.projection.weight.device)
        lengths = [len(p) + len(r) for p, r in zip(prompt_ids, response_ids, strict=True)]
        offsets = list(accumulate(map(len, response_ids), initial=0))[:-1]
        return ResponseStates(packed_RX, offsets, sum(lengths), sum(lengths))

    def metrics(self) -> dict[str, float]:
        """teacher/unlisted_mass: mean over the rows of training since the last call; of this rank."""
        found, self._unlisted = self._unlisted, []
        return {"teacher/unlisted_mass": sum(found) / len(found)} if found else {}
