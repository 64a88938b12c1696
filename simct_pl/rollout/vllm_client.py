"""The few things that we ask of a vLLM server over HTTP: to generate, to take weights, and which weights it holds.

In: token ids and sampling arguments, or a folder of weights and a label. Out: sampled ids, each with the label of the
weights that sampled it. The endpoints are those of vLLM 0.32 with VLLM_SERVER_DEV_MODE=1.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3.util.retry import Retry

from simct_pl.errors import RecipeError, RolloutError

CONNECT_SECONDS = 5.0
MAX_WAIT_SECONDS = 10.0


@dataclass(frozen=True)
class Reply:
    """One response. weights: labels of the weights that its tokens were sampled from."""

    response_ids: list[int]
    logprobs: list[float]
    finish_reason: str | None
    weights: frozenset[str]


class VLLMClient:
    """A server at a URL. A request that gets no answer, or that the server is not ready for, is sent again.

    Args:
        key_variable: environment variable with the server's key; None: it asks for none.
        timeout: seconds to wait for an answer. retries: further attempts, after .5, 1, 2, … at most 10 seconds.
        connections: kept open at a time.
        start: what errors tell the user to start it with.
    """

    def __init__(
        self,
        url: str,
        key_variable: str | None,
        timeout: float,
        retries: int,
        connections: int,
        start: str = "`python -m simct_pl serve --model STUDENT`, on the host and port of this url",
    ) -> None:
        self.url, self.key_variable, self.timeout, self.start = url.rstrip("/"), key_variable, timeout, start
        retry = Retry(
            total=retries,
            backoff_factor=0.5,
            backoff_max=MAX_WAIT_SECONDS,
            status_forcelist=(502, 503, 504),
            allowed_methods=None,  # POST too: asking the same seed twice gives the same response
            raise_on_status=False,
        )
        self._session = requests.Session()
        self._session.trust_env = False  # no proxy between two processes of a run
        self._session.mount(self.url, HTTPAdapter(pool_maxsize=connections, max_retries=retry))

    def max_model_len(self) -> int:
        """Longest prompt + response, in tokens."""
        return int(self.models()[0]["max_model_len"])

    def models(self) -> list[dict[str, Any]]:
        """What is served: id, root and max_model_len of each model."""
        return list(self._ask("GET", "/v1/models")["data"])

    def held_weights(self) -> str:
        """The label that was given with the weights that the server holds; "default" after a start."""
        return str(self._ask("GET", "/weight_info")["weight_version"])

    def load_weights(self, folder: Path, label: str) -> None:
        """Have the server read weights from a folder that it sees, and forget what it cached under older ones."""
        self._ask("POST", "/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}})
        self.label_weights(label)

    def label_weights(self, label: str) -> None:
        """New weights have arrived: drop what was cached under older ones, and call them by a label."""
        if not self._ask("POST", "/reset_prefix_cache?reset_running_requests=true")["success"]:
            raise RolloutError(
                f"The vLLM server at {self.url} did not drop the prefixes it cached under older weights."
            )
        self._ask("POST", "/update_weight_version", {"new_version": label})

    # ---- what vLLM's own transfer of weights calls (its protocol VLLMWeightSyncClient) ----

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self._ask("POST", "/init_weight_transfer_engine", {"init_info": init_info})

    def start_weight_update(self) -> None:
        self._ask("POST", "/start_weight_update")

    def update_weights(self, update_info: Any) -> None:
        self._ask("POST", "/update_weights", {"update_info": update_info})

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self._ask("POST", "/finish_weight_update", {"weight_version": weight_version})

    # ---- sampling ----

    def generate(self, prompt_ids: list[int], sampling: dict[str, Any]) -> Reply:
        found = self._ask("POST", "/inference/v1/generate", {"token_ids": prompt_ids, "sampling_params": sampling})
        (choice,) = found["choices"]
        return Reply(
            choice["token_ids"],
            [entry["logprob"] for entry in choice["logprobs"]["content"]],
            choice["finish_reason"],
            frozenset(span["version"] for span in choice["weight_versions"] or ()),
        )

    # ---- reading ----

    def tokenize(self, asked: dict[str, Any]) -> list[int]:
        """Ids of a text (`prompt`) or of a conversation (`messages`), as the server reads them."""
        return list(self._ask("POST", "/tokenize", asked)["tokens"])

    def prompt_logprobs(self, ids: Sequence[int], top_k: int, model: str | None) -> list[dict[int, float] | None]:
        """Log-probabilities in front of each id: of the top_k likeliest tokens (-1: of all) and of that id itself.
        None in front of the first.
        """
        asked = {"model": model, "prompt": list(ids), "prompt_logprobs": top_k, "max_tokens": 1, "temperature": 0}
        (choice,) = self._ask("POST", "/v1/completions", asked)["choices"]
        found = choice["prompt_logprobs"]
        return [None if row is None else {int(k): float(v["logprob"]) for k, v in row.items()} for row in found]

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """The server's answer.

        Raises:
            RolloutError: if there is none, saying how to start a server; or if it refuses, with its own words.
        """
        try:
            answer = self._session.request(
                method, self.url + path, json=body, headers=self._key(), timeout=(CONNECT_SECONDS, self.timeout)
            )
        except requests.RequestException as error:
            raise RolloutError(
                f"The vLLM server at {self.url} does not answer ({type(error).__name__}). Start it with "
                f"{self.start}, and start the run again."
            ) from error
        if answer.status_code == requests.codes.unauthorized:
            raise RolloutError(
                f"The vLLM server at {self.url} refuses the key in {self.key_variable}; export the same."
            )
        if answer.status_code == requests.codes.not_found:
            raise RolloutError(
                f"The server at {self.url} has no {path}. Start it with {self.start}, which switches on what is "
                "asked of it."
            )
        if not answer.ok:
            raise RolloutError(
                f"The vLLM server at {self.url} refuses {path} ({answer.status_code}): {answer.text[:500]}"
            )
        return dict(answer.json()) if answer.content else {}

    def _key(self) -> dict[str, str]:
        if self.key_variable is None:
            return {}
        key = os.environ.get(self.key_variable, "")
        if not key:
            raise RecipeError(
                f"The environment variable {self.key_variable} is not set; export the key that the vLLM server at "
                f"{self.url} was started with."
            )
        return {"Authorization": f"Bearer {key}"}
