"""A stand-in for a vLLM server with a teacher: a real model's log-probabilities, in the form of vLLM's answers.

`noise`: nats that every second answer is off by. `trouble`: status codes to answer with first.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import Any

import torch
from transformers import PreTrainedModel

from simct_pl.tokenization.model_tokenizer import ModelTokenizer


class FakeTeacherServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, model: PreTrainedModel, tokenizer: ModelTokenizer, name: str = "teacher") -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.model, self.tokenizer, self.name = model, tokenizer, name
        self.noise, self.answered, self.max_model_len = 0.0, 0, 128
        self.trouble: list[int] = []
        self.asked: list[dict[str, Any]] = []
        self.lock = Lock()

    def answer(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
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


class Handler(BaseHTTPRequestHandler):
    server: FakeTeacherServer
    protocol_version = "HTTP/1.1"

    def reply(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        with self.server.lock:
            status, content = 200, {}
            if self.server.trouble:
                status = self.server.trouble.pop(0)
            else:
                content = self.server.answer(self.path, json.loads(body) if body else {})
        text = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_GET = do_POST = reply

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def serving(server: FakeTeacherServer) -> Iterator[FakeTeacherServer]:
    """Answering, in a thread of its own."""
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
