"""Graders of code by the tests that come with a prompt, in the sandbox of the evaluation.

In: a response, and a prompt whose answer holds tests in the form of one of the public data sets. Out: 1.0 if the code
passes all of them. Nothing of the response runs outside the sandbox.
"""

from __future__ import annotations

import ast
import json
from typing import Any

from typing_extensions import override

from simct_pl.errors import PromptDataError
from simct_pl.evaluation.benchmarks.code_benchmark import code_of
from simct_pl.evaluation.benchmarks.livecodebench import same_output
from simct_pl.evaluation.grader import Grader
from simct_pl.evaluation.sandbox.sandbox import Sandbox
from simct_pl.types import Prompt


class AssertGrader(Grader):
    """Tests as a list of statements (MBPP, OpenCodeInstruct), or as a module of pytest functions (KodCode).

    Args:
        sandbox: its limits, those of each test.
    """

    def __init__(self, sandbox: Sandbox = Sandbox()) -> None:  # noqa: B008 - frozen
        self.sandbox = sandbox

    @override
    def __call__(self, prompt: Prompt, response: str) -> float:
        setup, tests = tests_of(prompt)
        return float(self.sandbox.run_tests(code_of(response), tests, setup).passed)


class ProgramGrader(Grader):
    """Tests as what a program reads and prints: {"inputs": […], "outputs": […]} (TACO), or "input" and "output"
    (CodeContests).

    Args:
        sandbox: its limits, those of each test. max_tests: only the first ones are run; some problems have hundreds.
    """

    def __init__(self, sandbox: Sandbox = Sandbox(), max_tests: int = 20) -> None:  # noqa: B008 - frozen
        self.sandbox, self.max_tests = sandbox, max_tests

    @override
    def __call__(self, prompt: Prompt, response: str) -> float:
        code = code_of(response)
        for given, expected in pairs_of(prompt)[: self.max_tests]:
            run = self.sandbox.run_program(code, given.encode())
            if run.reason != "ok" or not same_output(run.stdout.decode(errors="replace"), expected):
                return 0.0
        return 1.0


def tests_of(prompt: Prompt) -> tuple[str, list[str]]:
    """(setup, statements) of a prompt's tests.

    Raises:
        PromptDataError: if its answer is neither a JSON list of statements nor Python with test functions, or if these
            need pytest, which is not in the sandbox: right code would be graded wrong.
    """
    answer = prompt.answer or ""
    if answer.lstrip().startswith("["):
        tests = _json(prompt)
        if tests and all(isinstance(test, str) for test in tests):
            return "", list(tests)
        raise _unfit(prompt, "a list of statements")
    try:
        module = ast.parse(answer)
    except (SyntaxError, ValueError) as error:
        raise _unfit(prompt, "a JSON list of statements, or Python with functions named test_…") from error
    found = [node for node in module.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test")]
    if not found:
        raise _unfit(prompt, "functions named test_…")
    # The solution is not a module there: what its tests import from it is found by name. Nor is pytest.
    module.body = [node for node in module.body if not _is_left_out(node)]
    if _needs_pytest(module) or any(len(node.args.args) > len(node.args.defaults) for node in found):
        raise _unfit(prompt, "functions that need neither pytest nor its fixtures")
    return ast.unparse(module), [f"{node.name}()" for node in found]


def pairs_of(prompt: Prompt) -> list[tuple[str, str]]:
    """(input, output) of each test.

    Raises:
        PromptDataError: if the answer is no such JSON, has no test, or is about calls of a function.
    """
    tests = _json(prompt)
    if not isinstance(tests, dict) or tests.get("fn_name"):
        raise _unfit(prompt, 'what a program reads and prints: {"inputs": […], "outputs": […]}')
    inputs, outputs = (tests.get(f"{key}s", tests.get(key)) for key in ("input", "output"))
    if not isinstance(inputs, list) or not isinstance(outputs, list) or not 0 < len(inputs) == len(outputs):
        raise _unfit(prompt, "as many inputs as outputs, and at least one")
    return [(_text(given), _text(expected)) for given, expected in zip(inputs, outputs, strict=True)]


def _json(prompt: Prompt) -> Any:
    try:
        return json.loads(prompt.answer or "")
    except json.JSONDecodeError as error:
        raise _unfit(prompt, "JSON") from error


def _text(value: Any) -> str:
    """Some problems have their lines in a list."""
    return "\n".join(map(str, value)) if isinstance(value, list) else str(value)


def _is_left_out(node: ast.stmt) -> bool:
    """An import of the solution's names, or of pytest by its own."""
    if isinstance(node, ast.ImportFrom):
        return node.module == "solution"
    return isinstance(node, ast.Import) and [(name.name, name.asname) for name in node.names] == [("pytest", None)]


def _needs_pytest(module: ast.Module) -> bool:
    """Whether what is left of a module of tests uses pytest."""
    for node in ast.walk(module):
        imported = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        imported += [name.name for name in node.names] if isinstance(node, ast.Import) else []
        imported += [node.id] if isinstance(node, ast.Name) else []
        if any(name.partition(".")[0] == "pytest" for name in imported):
            return True
    return False


def _unfit(prompt: Prompt, expected: str) -> PromptDataError:
    return PromptDataError(f"Prompt {prompt.index}: the tests {prompt.answer!r:.80} are not {expected}.")
