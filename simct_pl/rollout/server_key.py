"""Middleware of the vLLM server that `python -m simct_pl serve` starts: no request without the key.

vLLM itself asks for its key under /v1 and /inference only, not where weights are replaced. Runs in the server and
imports nothing of ours.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Awaitable, Callable
from typing import Any

KEY_VARIABLE = "VLLM_API_KEY"
OPEN_PATH = "/health"

Scope = dict[str, Any]
App = Callable[[Scope, Callable[[], Awaitable[Any]], Callable[[Scope], Awaitable[None]]], Awaitable[None]]


class RequireKey:
    """ASGI middleware: every path but /health needs `Authorization: Bearer KEY`, the key being $VLLM_API_KEY."""

    def __init__(self, app: App) -> None:
        self.app = app
        self.expected = f"Bearer {os.environ[KEY_VARIABLE]}".encode()

    async def __call__(
        self, scope: Scope, receive: Callable[[], Awaitable[Any]], send: Callable[[Scope], Awaitable[None]]
    ) -> None:
        is_open = scope["type"] == "lifespan" or scope.get("path") == OPEN_PATH
        given = dict(scope.get("headers", ())).get(b"authorization", b"")
        if is_open or hmac.compare_digest(given, self.expected):
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            await send({"type": "http.response.start", "status": 401, "headers": [(b"content-type", b"text/plain")]})
            await send({"type": "http.response.body", "body": b"the key is missing or wrong"})
        else:
            await send({"type": "websocket.close", "code": 1008})
