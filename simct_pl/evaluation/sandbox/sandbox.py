"""Runs code that nobody has read. Exit codes are no verdict: a test suite is passed when a fresh secret comes back,
which the code under test cannot know; a program is right when its output is.

Two sandboxes a suite: one process holds the tests and the secret, the other the code, and only calls and plain values
pass between them (guest/). Each has its own limits of time, memory, files and processes.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from simct_pl.errors import RecipeError, SandboxError
from simct_pl.evaluation.grader import UNGRADABLE
from simct_pl.evaluation.sandbox.bwrap import GUEST, find_bwrap, interpreter, sandboxed
from simct_pl.evaluation.sandbox.process import Running, content_of, memory_file, running

START_SECONDS = 5.0  # for interpreters to start on a busy machine; not counted as the code's time
KILLED = (signal.SIGKILL, signal.SIGXCPU)  # by the limit of processor time
EXAMINER_MB = 512


@dataclass(frozen=True)
class Verdict:
    """passed: whether every test passed. reason: "passed", "wrong", "timeout", "died" (it ended, was killed, or ran out
    of memory), "ungradable" (the tests can tell no code right from wrong). detail: which test, and what it raised.
    """

    passed: bool
    reason: str
    detail: str = ""


@dataclass(frozen=True)
class ProgramRun:
    """What a program printed; reason: "ok", "timeout" or "error". error: the end of its traceback."""

    stdout: bytes
    reason: str
    error: str = ""


@dataclass(frozen=True)
class Sandbox:
    """Limits of the code under test.

    time_limit: seconds of each test. memory_mb: on top of the interpreter's own. file_mb: of its /tmp, of each file and
    of its output. unsafe: run without bubblewrap: limits and call filter hold, but files and network are open.

    Raises:
        RecipeError: for a limit that is not positive.
    """

    time_limit: float = 10.0
    memory_mb: int = 128
    file_mb: int = 16
    unsafe: bool = False

    def __post_init__(self) -> None:
        if min(self.time_limit, self.memory_mb, self.file_mb) <= 0:
            raise RecipeError(f"time_limit, memory_mb and file_mb of {self} are limits; expected more than 0.")

    def check(self) -> None:
        """Run a program and a test, so that a machine that cannot do so says it before anything is generated.

        Raises:
            MissingPackageError: without bubblewrap. SandboxError: if it does not work here.
        """
        run = self.run_program("print(input())", b"works\n")
        if run.stdout != b"works\n":
            raise SandboxError(
                f"The sandbox does not start here: {run.error or run.reason}. Bubblewrap needs user namespaces; in a "
                "container, allow them (docker run --security-opt seccomp=unconfined), or set sandbox.unsafe to true "
                "where nothing can be harmed."
            )
        verdict = self.run_tests("def f(x): return x", ["assert f(1) == 1"])
        if not verdict.passed:
            raise SandboxError(f"The sandbox's own test does not pass here: {verdict}.")

    def run_tests(
        self, code: str, tests: Sequence[str], setup: str = "", entry: str | Sequence[str] | None = None
    ) -> Verdict:
        """Whether the code's definitions pass tests (sources of statements, in order) after a setup.

        What a test uses and nobody defines is the code's; that includes what the setup makes with it. entry: one name
        or several that are the code's too, although a built-in function or a module is called so.
        """
        if not tests:
            return Verdict(False, UNGRADABLE, "there is no test")
        secret = secrets.token_hex(16)
        job = {"secret": secret, "code": code, "setup": setup, "tests": list(tests), "time_limit": self.time_limit}
        job["entry"] = [entry] if isinstance(entry, str) else list(entry or ())
        seconds = (len(tests) + 2) * self.time_limit
        limits = f"{self.memory_mb}, {round(seconds) + 1}, {self.file_mb}"
        requests, answers = os.pipe(), os.pipe()
        with memory_file(json.dumps(job).encode()) as job_file, memory_file() as verdict_file:
            with ExitStack() as started:
                try:
                    call = f"solution_process.functions({limits})"
                    started.enter_context(self._running(call, requests[0], answers[1]))
                    call = f"test_process.examine({requests[1]}, {answers[0]}, {EXAMINER_MB}, {round(seconds) + 1})"
                    pipes = (requests[1], answers[0])
                    examiner = started.enter_context(self._running(call, job_file, verdict_file, pass_fds=pipes))
                finally:
                    for descriptor in (*requests, *answers):
                        os.close(descriptor)
                examiner.wait(seconds + START_SECONDS)
            return _verdict(content_of(verdict_file), secret)

    def run_program(self, code: str, stdin: bytes) -> ProgramRun:
        """Run the code as a program that reads `stdin`."""
        limits = f"{self.memory_mb}, {round(self.time_limit) + 1}, {self.file_mb}"
        with (
            memory_file(code.encode(errors="surrogatepass")) as code_file,
            memory_file(stdin) as stdin_file,
            memory_file() as stdout,
            memory_file() as stderr,
        ):
            call = f"solution_process.program({code_file}, {limits})"
            with self._running(call, stdin_file, stdout, stderr, (code_file,)) as process:
                in_time = process.wait(self.time_limit + START_SECONDS)
            code_of_exit = process.exit_code or 0
            killed = code_of_exit - 128 in KILLED
            reason = "timeout" if killed or not in_time else "ok" if code_of_exit == 0 else "error"
            error = content_of(stderr).decode(errors="replace").strip()[-500:]
            return ProgramRun(content_of(stdout), reason, error)

    @cached_property
    def _bwrap(self) -> list[str]:
        return [] if self.unsafe else sandboxed(find_bwrap(), self.file_mb)

    def _running(
        self, call: str, stdin: int, stdout: int, stderr: int = subprocess.DEVNULL, pass_fds: Sequence[int] = ()
    ) -> AbstractContextManager[Running]:
        command = interpreter(call, str(GUEST.parent) if self.unsafe else "/sandbox")
        return running(command, stdin, stdout, stderr, pass_fds, self._bwrap)


def _verdict(content: bytes, secret: str) -> Verdict:
    try:
        found: dict[str, Any] = json.loads(content)
    except ValueError:
        return Verdict(False, "died", "the tests came to no end")
    if secrets.compare_digest(str(found.get("secret")), secret):
        return Verdict(True, "passed")
    return Verdict(False, str(found.get("reason")), f"{found.get('failed')}: {found.get('error', '')}".strip(": "))
