"""`python -m MODULE …` in a process of its own with the heavy imports done: it starts in a moment, not in ten seconds.

One server (tests/warm_server.py) is there for all workers of a test run, and does the imports at the first request.
A process differs from a fresh interpreter in nothing that a command sees but in what was imported before it began. So
tests of imports, of the first contact (tests/e2e/test_fit.py) and of how Lightning starts ranks
(tests/distributed/test_nan.py) keep fresh interpreters.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, TypeVar

from simct_pl.config.recipes import PACKAGE

Result = TypeVar("Result")

ROOT = PACKAGE.parent
ADDRESS = "SIMCT_PL_WARM_SERVER"  # environment variable: the server's socket, for this process and pytest's workers
POLL = 0.005  # seconds


class Server:
    """The server's process; ends with this one, or when closed."""

    def __init__(self) -> None:
        self.folder = tempfile.mkdtemp(prefix="simct-")
        address = os.path.join(self.folder, "warm")
        command = [sys.executable, "-m", "tests.warm_server", address]
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, env=dict(os.environ), start_new_session=True
        )
        os.environ[ADDRESS] = address

    def close(self) -> None:
        os.environ.pop(ADDRESS, None)
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()
        shutil.rmtree(self.folder)


class Process:
    """The part of subprocess.Popen that tests need. `returncode` is None until the end has been seen."""

    def __init__(
        self, arguments: Sequence[str], folder: Path, environment: Mapping[str, str], stdout: int, stderr: int
    ) -> None:
        self.arguments = arguments
        self.returncode: int | None = None
        self._connection = _connect()
        request = {"arguments": list(arguments), "folder": str(folder), "environment": dict(environment)}
        socket.send_fds(self._connection, [json.dumps(request).encode()], [stdout, stderr])
        self.pid = int(self._connection.recv(64))

    def poll(self) -> int | None:
        return self._receive(0.0)

    def wait(self, timeout: float | None = None) -> int:
        """Raises subprocess.TimeoutExpired."""
        code = self._receive(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(list(self.arguments), timeout or 0.0)
        return code

    def _receive(self, timeout: float | None) -> int | None:
        """The exit code; None if it did not come in time."""
        if self.returncode is None:
            self._connection.settimeout(timeout)
            try:
                answer = self._connection.recv(64)
            except (BlockingIOError, TimeoutError):
                return None
            assert answer, "the server of warm processes has ended"
            self.returncode = int(answer)
            self._connection.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def __enter__(self) -> Process:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """A test that fails leaves no process behind."""
        if self.returncode is None:
            self._connection.close()  # the server kills it, and what it has started


def _connect() -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    deadline = time.monotonic() + 60
    while True:
        try:
            connection.connect(os.environ[ADDRESS])
            return connection
        except (FileNotFoundError, ConnectionRefusedError):  # it has only just been started
            if time.monotonic() > deadline:
                raise
            time.sleep(POLL)


def environment_of(**changes: str | None) -> dict[str, str]:
    """This process's, with the checkout's packages and a wide terminal. changes: None takes a variable away."""
    own = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200", **changes, ADDRESS: None}
    return {name: value for name, value in own.items() if value is not None}


def _process(
    arguments: Sequence[str], folder: Path, stdout: IO[bytes], stderr: IO[bytes], changes: Mapping[str, str | None]
) -> Process | subprocess.Popen[bytes]:
    environment = environment_of(**changes)
    if hasattr(os, "pidfd_open"):
        return Process(arguments, folder, environment, stdout.fileno(), stderr.fileno())
    # Elsewhere than on Linux: a fresh interpreter.
    command = [sys.executable, "-m", *arguments]
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr
    )


def start(
    arguments: Sequence[str], folder: Path, output: Path, **changes: str | None
) -> Process | subprocess.Popen[bytes]:
    """Start `python -m` with arguments in a folder; what it prints goes to a file. changes: of the environment."""
    with open(output, "ab") as file:
        return _process(arguments, folder, file, file, changes)


def run(
    arguments: Sequence[str], folder: Path, timeout: float | None = 300, **changes: str | None
) -> subprocess.CompletedProcess[str]:
    """Run `python -m` with arguments in a folder, to the end. Raises subprocess.TimeoutExpired, and has killed it."""
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        with _process(arguments, folder, stdout, stderr, changes) as process:
            code = process.wait(timeout)
        texts = []
        for file in (stdout, stderr):
            file.seek(0)
            texts.append(file.read().decode())
    return subprocess.CompletedProcess(list(arguments), code, *texts)


def call(function: Callable[..., Result], *values: Any) -> Result:
    """function(*values) in a process of its own; it must be found by its module and name."""
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch, "call.pickle")
        file.write_bytes(pickle.dumps((function, values)))
        done = run(["tests.warm", str(file)], ROOT)
        assert done.returncode == 0, done.stderr
        result: Result = pickle.loads(file.read_bytes())
        return result


if __name__ == "__main__":
    path = Path(sys.argv[1])
    asked, given = pickle.loads(path.read_bytes())
    path.write_bytes(pickle.dumps(asked(*given)))
