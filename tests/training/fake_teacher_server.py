"""A stand-in for a vLLM server with a teacher: a real model's log-probabilities, in the form of vLLM's answers.

`noise`: nats that every second answer is off by. `trouble`: status codes to answer with first.
"""

from __future__ import annotations

import json
from typing import Any

import torch
from transformers import PreTrainedModel

from simct_pl.tokenization.model_tokenizer import ModelTokenizer
from tests.json_server import JsonServer


class FakeTeacherServer(JsonServer):
    def __init__(self, model: PreTrainedModel, tokenizer: ModelTokenizer, name: str = "teacher") -> None:
        super().__init__()
        self.model, self.tokenizer, self.name = model, tokenizer, name
        self.noise, self.answered, self.max_model_len = 0.0, 0, 128
        self.asked: list[dict[str, Any]] = []

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
        return 200, self.said(path, json.loads(body) if body else {})

    def said(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        if path == "/v1/models":
            return {"data": [{"id": self.name, "root": self.name, "max_model_len": self.max_model_len}]}
        if path == "/tokenize":
            if "messages" in body:
                return {"tokens": self.tokenizer.render_prompt(body["messages"])}
            return {"tokens": self.tokenizer.encode(body["prompt"])}
        assert path == "/v1/completions"
        self.asked.append(body)
        assert len(body["prompt"]) + body["max_tokens"] <= self.max_model_len
        return {"choices": [{"text": "", "prompt_logprobs": self.prompt_logprobs(body)}]}

    @torch.no_grad()
    def prompt_logprobs(self, body: dict[str, Any]) -> list[dict[str, Any] | None]:
        """As vLLM does: the likeliest, and the token that is there if it is none of them."""
        ids = torch.tensor([body["prompt"]])
        rows_SV = self.model(input_ids=ids).logits[0].double().log_softmax(-1)
        self.answered += 1
        found: list[dict[str, Any] | None] = [None]
        for row_V, there in zip(rows_SV, body["prompt"][1:], strict=False):
            most = len(row_V) if body["prompt_logprobs"] == -1 else body["prompt_logprobs"]
            listed = {*row_V.topk(most).indices.tolist(), there}
            shift = self.noise * (self.answered % 2)
            found.append({str(k): {"logprob": float(row_V[k]) - shift, "rank": 1, "decoded_token": ""} for k in listed})
        return found
