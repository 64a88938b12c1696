"""Code out of a response, and the grade of a suite of tests: what the code benchmarks share."""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import Any

from simct_pl.evaluation.benchmarks.base import Benchmark, Grade, Problem
from simct_pl.evaluation.sandbox.sandbox import Sandbox

FENCED = re.compile(r"```[ \t]*([\w+-]*)[^\n]*\n(.*?)(?:\n[ \t]*```|\Z)", re.DOTALL)
PYTHON = {"", "python", "python3", "py"}
ANSWER_FORM = "Answer with the whole program in one Python code block (```python … ```)."


def code_of(response: str, entry: str | None = None) -> str:
    """The Python of a response: the last code block that defines `entry`, else the last block, else all of it.

    A block that was cut at the length limit counts; those of other languages do not.
    """
    blocks = [code for language, code in FENCED.findall(response) if language.lower() in PYTHON]
    if not blocks:
        return response
    if entry is not None:
        defines = re.compile(rf"^\s*(?:async\s+)?(?:def|class)\s+{re.escape(entry)}\b|^{re.escape(entry)}\s*=", re.M)
        blocks = [block for block in blocks if defines.search(block)] or blocks
    return blocks[-1]


class CodeBenchmark(Benchmark):
    """Programs that are run in a sandbox.

    Args:
        sandbox: its limits.
    """

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox

    def grading(self) -> dict[str, Any]:
        return {"sandbox": asdict(self.sandbox)}

    def check(self) -> None:
        self.sandbox.check()

    def grade(self, problem: Problem, response: str) -> Grade:
        code = code_of(response, problem.entry)
        if not code.strip():
            return Grade(0.0, "no_answer")
        verdict = self.sandbox.run_tests(f"{problem.code}{code}", problem.tests, problem.setup, problem.entry)
        return Grade(float(verdict.passed), "right" if verdict.passed else verdict.reason, verdict.detail)
