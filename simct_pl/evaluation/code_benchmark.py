"""Code out of a response, and the grade of a suite of tests: what the code benchmarks share.

In: a response. Out: the code in it, in time that grows with its length however it looks; and a grade.
"""

from __future__ import annotations

import ast
import builtins
import re
from dataclasses import asdict
from typing import Any

from simct_pl.evaluation.benchmark import Benchmark, Grade, Problem
from simct_pl.evaluation.grader import UNGRADABLE
from simct_pl.evaluation.sandbox.sandbox import Sandbox

FENCE = "```"
LANGUAGE = re.compile(r"^[\w+-]*")
PYTHON = {"", "python", "python3", "py"}
ANSWER_FORM = "Answer with the whole program in one Python code block (```python … ```)."


def code_of(response: str, entry: str | None = None) -> str:
    """The Python of a response: the last code block that defines `entry`, else the last block, else all of it.

    A block that was cut at the length limit counts; those of other languages and empty ones do not.
    """
    python = [code for language, code in fenced_blocks(response) if language.lower() in PYTHON]
    if not python:
        return response
    blocks = [code for code in python if code.strip()] or python
    if entry is not None:
        # No pattern here may cross a line: a collapsed model writes thousands of empty ones.
        name, blank = re.escape(entry), r"[ \t]"
        function = rf"^{blank}*(?:async{blank}+)?(?:def|class){blank}+{name}\b"
        defines = re.compile(rf"{function}|^{name}{blank}*(?::[^=\n]*)?=(?!=)", re.M)
        blocks = [block for block in blocks if defines.search(block)] or blocks
    return blocks[-1]


def fenced_blocks(text: str) -> list[tuple[str, str]]:
    """(language, content) of each fenced block; the last one may have no end. One pass over the lines."""
    blocks: list[tuple[str, str]] = []
    language = ""
    inside: list[str] | None = None  # the lines of the block that is open
    for line in text.split("\n"):
        if inside is not None and not line.lstrip(" \t").startswith(FENCE):
            inside.append(line)
            continue
        was_open = inside is not None
        if inside is not None:
            blocks.append((language, "\n".join(inside)))
            inside = None
        *before, info = line.split(FENCE)
        [language] = LANGUAGE.findall(info.lstrip(" \t"))[:1]  # of the empty text, the empty one
        # Two fences in a line are code within it. What ends a block and names a language begins the next one.
        if len(before) % 2 == 1 and (language or not was_open):
            inside = []
    return [*blocks, (language, "\n".join(inside))] if inside else blocks


def entry_of(test: str) -> str | None:
    """The function that an assertion is about: the outermost call by a plain name that is no built-in's; where there
    is none, by any (a problem asks for a function `sum`).

    Raises:
        SyntaxError: for what is no Python.
    """
    calls = [node.func for node in ast.walk(ast.parse(test)) if isinstance(node, ast.Call)]
    names = [function.id for function in calls if isinstance(function, ast.Name)]
    return next((name for name in names if not hasattr(builtins, name)), names[0] if names else None)


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
        if not problem.tests:
            return Grade(0.0, UNGRADABLE, "the problem has no test")
        if not code.strip():
            return Grade(0.0, "no_answer")
        verdict = self.sandbox.run_tests(f"{problem.code}{code}", problem.tests, problem.setup, problem.entry)
        return Grade(float(verdict.passed), "right" if verdict.passed else verdict.reason, verdict.detail)
