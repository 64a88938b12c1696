"""An HTTP server of a test's own, in a thread: JSON in, JSON out, one request at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import Any, TypeVar

Server = TypeVar("Server", bound="JsonServer")


class JsonServer(ThreadingHTTPServer):
    """Subclasses say what is answered. trouble: status codes to answer with first. keys: all that were shown."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.trouble: list[int] = []
        self.keys: set[str] = set()
        self.lock = Lock()

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
        """A status, and what is said; one request at a time."""
        raise NotImplementedError

    def refuses(self, authorization: str) -> bool:
        """Whether a request with such a header is answered 401."""
        return False


class _Handler(BaseHTTPRequestHandler):
    server: JsonServer
    protocol_version = "HTTP/1.1"

    def reply(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        key = self.headers.get("Authorization", "")
        with self.server.lock:
            self.server.keys.add(key)
            content: dict[str, Any] = {}
            if self.server.refuses(key):
                status = 401
            elif self.server.trouble:
                status = self.server.trouble.pop(0)
            else:
                status, content = self.server.answer(self.command, self.path, body)
        text = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_GET = do_POST = reply

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(server: Server) -> Iterator[Server]:
    """Answering, in a thread of its own."""
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
