"""LiveCodeBench (Jain et al. 2024, arXiv 2403.07974): contest problems, as programs that read standard input or as a
method of `Solution`; each problem says which. The release is part of the name: v6 adds 175 problems to v5.
"""

from __future__ import annotations

import base64
import io
import json
import pickle
import zlib
from collections.abc import Mapping
from typing import Any

from simct_pl.errors import EvaluationError
from simct_pl.evaluation.benchmark import Grade, Problem, Rows
from simct_pl.evaluation.benchmarks.programs import grade_program
from simct_pl.evaluation.code_benchmark import ANSWER_FORM, CodeBenchmark
from simct_pl.evaluation.sandbox.sandbox import Sandbox

FIELDS = ("question_id", "question_content", "starter_code", "public_test_cases", "private_test_cases", "metadata")
MAX_TEST_BYTES = 2**31  # unpacked tests of one problem
# What contest sites import for a solution; starter codes use it.
IMPORTS = """\
import bisect, collections, copy, functools, heapq, itertools, json, math, operator, random, re, string, sys
from bisect import *
from collections import *
from functools import *
from heapq import *
from itertools import *
from math import *
from builtins import *
from typing import *
"""
AS_LISTS = """\
def as_lists(value):
    return [as_lists(item) for item in value] if isinstance(value, (list, tuple)) else value
"""


class LiveCodeBench(CodeBenchmark):
    """Contest problems with hidden tests; every one of them must pass.

    Args:
        path: a file of a release, or a hub address of one. release: what the file is, for the name of the metric.
        sandbox: limits of each test.
    """

    def __init__(
        self,
        path: str = "hf://datasets/livecodebench/code_generation_lite/test6.jsonl",
        release: str = "v6",
        sandbox: Sandbox = Sandbox(),  # noqa: B008 - frozen
    ) -> None:
        super().__init__(sandbox)
        self.path, self.release = path, release
        self.name = f"livecodebench_{release}"

    def problems(self) -> list[Problem]:
        return Rows(self.path, FIELDS).problems(lambda _, row: _problem(row))

    def grade(self, problem: Problem, response: str) -> Grade:
        if problem.tests:
            return super().grade(problem, response)
        return grade_program(self.sandbox, response, problem.pairs)


def _problem(row: Mapping[str, Any]) -> Problem:
    identity = str(row["question_id"])
    tests = json.loads(row["public_test_cases"]) + hidden_tests(identity, row["private_test_cases"])
    kinds = {test["testtype"] for test in tests}
    question = row["question_content"].strip()
    if kinds == {"stdin"}:
        prompt = f"{question}\n\nRead the input from standard input and print the answer. {ANSWER_FORM}"
        return Problem(identity, prompt, pairs=tuple((test["input"], test["output"]) for test in tests))
    if kinds != {"functional"}:
        raise EvaluationError(f"Problem {identity} has tests of kinds {sorted(kinds)}; expected stdin or functional.")
    name = json.loads(row["metadata"])["func_name"]
    prompt = f"{question}\n\nComplete this code:\n\n```python\n{row['starter_code'].rstrip()}\n```\n\n{ANSWER_FORM}"
    calls = tuple(_call(name, test) for test in tests)
    return Problem(identity, prompt, code=IMPORTS, setup=AS_LISTS, tests=calls, entry="Solution")


def _call(name: str, test: Mapping[str, str]) -> str:
    """A test as a statement: one argument a line, as JSON; a tuple is as good as a list."""
    arguments = ", ".join(repr(json.loads(line)) for line in test["input"].split("\n") if line)
    return f"assert as_lists(Solution().{name}({arguments})) == {json.loads(test['output'])!r}"


class PlainUnpickler(pickle.Unpickler):
    """Builds numbers, texts, lists and the like; a pickle that names anything that could be called is refused."""

    def find_class(self, module: str, name: str) -> Any:
        raise EvaluationError(f"A pickle among the hidden tests asks for {module}.{name}; only plain data is read.")


def hidden_tests(identity: str, packed: str) -> list[dict[str, str]]:
    """Hidden tests: JSON, or base64(zlib(pickle(JSON))).

    Raises:
        EvaluationError: if they are neither, or their pickle could run something.
    """
    if packed.lstrip().startswith("["):
        return list(json.loads(packed))
    try:
        unpacked = zlib.decompressobj().decompress(base64.b64decode(packed), MAX_TEST_BYTES)
        return list(json.loads(PlainUnpickler(io.BytesIO(unpacked)).load()))
    except (ValueError, TypeError, EOFError, zlib.error, pickle.UnpicklingError) as error:
        if isinstance(error, EvaluationError):
            raise
        raise EvaluationError(f"The hidden tests of problem {identity} cannot be read: {error}") from error
