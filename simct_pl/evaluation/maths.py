"""Maths answers: the last `\\boxed{}` of a response against a gold answer, by math-verify.

In: texts. Out: right or not, and why. math-verify can hang in sympy and stops itself by SIGALRM, which works in a main
thread only: each verification happens in a process of its own kind, which is killed when it takes too long.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from typing_extensions import override

from simct_pl.errors import EvaluationError, MissingPackageError, PromptDataError, RecipeError
from simct_pl.evaluation.boxed import last_boxed, plain_answer
from simct_pl.evaluation.grader import UNGRADABLE, Grader
from simct_pl.types import Prompt

MAX_ANSWER_CHARS = 1000  # or ten golds; math-verify thinks for seconds about what no person would box
START_SECONDS = 60.0  # sympy is slow to import on a busy machine
HOW_TO_GET = "Grading maths needs math-verify, which is not installed: pip install 'simct_pl[eval]'."


@dataclass(frozen=True)
class MathVerdict:
    """reason: "right", "wrong", "no_answer" (nothing boxed), "timeout", "ungradable" (the gold cannot be read)."""

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
        verdict = self.verdict(gold, response)
        if verdict.reason == UNGRADABLE:
            raise EvaluationError(f"math-verify finds no answer in the gold {gold!r}; expected LaTeX such as '3'.")
        return verdict

    def verdict(self, gold: str, response: str) -> MathVerdict:
        """The same, with "ungradable" for a gold that cannot be read."""
        if not gold.strip():
            return MathVerdict(False, UNGRADABLE, None)
        answer = last_boxed(response)
        if not answer:
            return MathVerdict(False, "no_answer", None)
        if len(answer) > max(MAX_ANSWER_CHARS, 10 * len(gold)):
            return MathVerdict(False, "wrong", f"{answer[:MAX_ANSWER_CHARS]}…")
        with self._lock:
            found = self._ask(plain_answer(gold), plain_answer(answer))
        reason = UNGRADABLE if found == "unreadable gold" else found
        return MathVerdict(reason == "right", reason, answer)

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
        with _ended_after(process, self.time_limit):
            with suppress(BrokenPipeError):  # it has died, and the empty answer says so
                process.stdin.write(json.dumps({"gold": gold, "answer": answer}) + "\n")
                process.stdin.flush()
            found = process.stdout.readline()
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
        with _ended_after(self._process, START_SECONDS):
            said = self._process.stdout.readline()
        if said != "ready\n":
            self.close()
            raise EvaluationError("The process that compares answers does not start; does `import math_verify` work?")
        return self._process


@contextmanager
def _ended_after(process: subprocess.Popen[str], seconds: float) -> Iterator[None]:
    """Kill the process if the block takes longer: to write to it may take for ever too, if it does not read."""
    alarm = threading.Timer(seconds, process.kill)
    alarm.start()
    try:
        yield
    finally:
        alarm.cancel()


class MathGrader(Grader):
    """1.0 if the response's last boxed answer equals the prompt's answer, by math-verify."""

    def __init__(self, time_limit: float = 15.0) -> None:
        self.verify = MathVerifier(time_limit)

    @override
    def __call__(self, prompt: Prompt, response: str) -> float:
        if prompt.answer is None:
            return 0.0
        verdict = self.verify.verdict(prompt.answer, response)
        if verdict.reason == UNGRADABLE:
            raise PromptDataError(
                f"Prompt {prompt.index}: math-verify finds no answer in {prompt.answer!r:.80}; expected LaTeX, as '3'."
            )
        return float(verdict.right)
