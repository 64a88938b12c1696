"""A stand-in for a vLLM server: it holds a label instead of weights, and answers a prompt with the prompt.

What it was asked for is in `events`; `trouble` holds status codes to answer with first.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.json_server import JsonServer, serving

KEY = "a-key"
MAX_MODEL_LEN = 16


class FakeServer(JsonServer):
    def __init__(self) -> None:
        super().__init__()
        self.label = "default"
        self.events: list[str] = []
        self.forgets = 0  # so many generations answer as after a restart

    def refuses(self, authorization: str) -> bool:
        return authorization != f"Bearer {KEY}"

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
        return 200, self.said(path, json.loads(body) if body else {})

    def said(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        self.events.append(path.partition("?")[0])
        match path.partition("?")[0]:
            case "/v1/models":
                return {"data": [{"max_model_len": MAX_MODEL_LEN}]}
            case "/weight_info":
                return {"weight_version": self.label}
            case "/collective_rpc":
                self.events.append(body["kwargs"]["weights_path"])
                return {"results": [None]}
            case "/reset_prefix_cache":
                return {"success": True}
            case "/init_weight_transfer_engine" | "/start_weight_update" | "/update_weights" | "/finish_weight_update":
                return {}
            case "/update_weight_version":
                self.label = body["new_version"]
                return {"success": True}
        ids = body["token_ids"]
        if self.forgets > 0:
            self.forgets, self.label = self.forgets - 1, "default"
        choice = {
            "token_ids": ids,
            "logprobs": {"content": [{"token_id": i, "logprob": -float(i)} for i in ids]},
            "finish_reason": "length",
            "weight_versions": [{"version": self.label, "start": 0, "end": len(ids)}],
        }
        return {"choices": [choice]}


@contextmanager
def fake_server() -> Iterator[FakeServer]:
    with serving(FakeServer()) as server:
        yield server
