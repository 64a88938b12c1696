"""A stand-in for a vLLM server: it holds a label instead of weights, and answers a prompt with the prompt.

What it was asked for is in `events`; `trouble` holds status codes to answer with first.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import Any

KEY = "a-key"
MAX_MODEL_LEN = 16


class FakeServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.label = "default"
        self.events: list[str] = []
        self.trouble: list[int] = []
        self.forgets = 0  # so many generations answer as after a restart
        self.lock = Lock()

    def answer(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
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


class Handler(BaseHTTPRequestHandler):
    server: FakeServer
    protocol_version = "HTTP/1.1"

    def reply(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        with self.server.lock:
            status, content = 200, {}
            if self.headers.get("Authorization") != f"Bearer {KEY}":
                status = 401
            elif self.server.trouble:
                status = self.server.trouble.pop(0)
            else:
                content = self.server.answer(self.path, json.loads(body) if body else {})
        text = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_GET = do_POST = reply

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def fake_server() -> Iterator[FakeServer]:
    server = FakeServer()
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
