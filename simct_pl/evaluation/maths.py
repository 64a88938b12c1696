"""Maths answers: the last `\boxed{}` of a response against a gold answer, by math-verify.

In: texts. Out: right or not, and why. math-verify can hang in sympy and stops itself by SIGALRM, which works in a main
thread only: each verification happens in a process of its own kind, which is killed when it takes too long.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from typing_extensions import override

from simct_pl.errors import EvaluationError, MissingPackageError, RecipeError
from simct_pl.evaluation.grader import Grader
from simct_pl.types import Prompt

BOX = "\\boxed"
START_SECONDS = 60.0  # sympy is slow to import on a busy machine
HOW_TO_GET = "Grading maths needs math-verify, which is not installed: pip install 'simct_pl[eval]'."


def last_boxed(response: str) -> str | None:
    """What the last whole `\\boxed{…}` holds, braces balanced; None without one."""
    end = len(response)
    while (start := response.rfind(BOX, 0, end)) >= 0:
        content = _braced(response[start + len(BOX) :].lstrip())
        if content is not None:
            return content.strip()
        end = start
    return None


def _braced(text: str) -> str | None:
    """What the braces hold that a text begins with; `\\{` is no brace."""
    if not text.startswith("{"):
        return None
    depth, escaped = 0, False
    for i, char in enumerate(text):
        if not escaped and char in "{}":
            depth += 1 if char == "{" else -1
            if depth == 0:
                return text[1:i]
        escaped = char == "\\" and not escaped
    return None


@dataclass(frozen=True)
class MathVerdict:
    """reason: "right", "wrong", "no_answer" (nothing boxed), "timeout"."""

    right: bool
    reason: str
    answer: str | None


class MathVerifier:
    """Compares answers in a process that outlives them, until one takes too long. Safe to use from several threads.

    Args:
        time_limit: seconds a comparison may take.

    Raises:
        MissingPackageError: without math-verify. RecipeError: for a limit that is not positive.
    """

    def __init__(self, time_limit: float = 15.0) -> None:
        if time_limit <= 0:
            raise RecipeError(f"time_limit is {time_limit}; expected more than 0 seconds.")
        if importlib.util.find_spec("math_verify") is None:
            raise MissingPackageError(HOW_TO_GET)
        self.time_limit = time_limit
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()

    def __call__(self, gold: str, response: str) -> MathVerdict:
        """Whether the response's last boxed answer is the gold one (LaTeX, without dollar signs).

        Raises:
            EvaluationError: for a gold answer that math-verify cannot read.
        """
        answer = last_boxed(response)
        if not answer:
            return MathVerdict(False, "no_answer", None)
        with self._lock:
            found = self._ask(gold, answer)
        if found == "unreadable gold":
            raise EvaluationError(f"math-verify finds no answer in the gold {gold!r}; expected LaTeX such as '3'.")
        return MathVerdict(found == "right", found, answer)

    def close(self) -> None:
        """End the process; the next comparison starts another."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            with suppress(BrokenPipeError):  # a question that it did not live to read
                pipe.close()

    def _ask(self, gold: str, answer: str) -> str:
        if self._process is not None and self._process.poll() is not None:
            self.close()  # it died of something else than this comparison
        process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        with suppress(BrokenPipeError):  # it has died, and the empty answer says so
            process.stdin.write(json.dumps({"gold": gold, "answer": answer}) + "\n")
            process.stdin.flush()
        found = _line_within(process, process.stdout, self.time_limit)
        if not found:
            self.close()
            return "timeout"
        return found.strip()

    def _start(self) -> subprocess.Popen[str]:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "simct_pl.evaluation.maths_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=Path(__file__).resolve().parents[2],
        )
        assert self._process.stdout is not None
        if _line_within(self._process, self._process.stdout, START_SECONDS) != "ready\n":
            self.close()
            raise EvaluationError("The process that compares answers does not start; does `import math_verify` work?")
        return self._process


def _line_within(process: subprocess.Popen[str], lines: IO[str], seconds: float) -> str:
    """The next line; empty if the process ends, or is ended, before it."""
    alarm = threading.Timer(seconds, process.kill)
    alarm.start()
    try:
        return lines.readline()
    finally:
        alarm.cancel()


class MathGrader(Grader):
    """1.0 if the response's last boxed answer equals the prompt's answer, by math-verify."""

    def __init__(self, time_limit: float = 15.0) -> None:
        self.verify = MathVerifier(time_limit)

    @override
    def __call__(self, prompt: Prompt, response: str) -> float:
        return 0.0 if prompt.answer is None else float(self.verify(prompt.answer, response).right)
