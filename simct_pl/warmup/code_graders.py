"""Graders of code by the tests that come with a prompt, in the sandbox of the evaluation.

In: a response, and a prompt whose answer holds tests in the form of one of the public data sets. Out: 1.0 if the code
passes all of them. Nothing of the response runs outside the sandbox.
"""

from __future__ import annotations

import ast
import json
from typing import Any

from typing_extensions import override

from simct_pl.errors import PromptDataError, RecipeError
from simct_pl.evaluation.benchmarks.programs import grade_program
from simct_pl.evaluation.code_benchmark import code_of, entry_of
from simct_pl.evaluation.grader import UNGRADABLE, Grader
from simct_pl.evaluation.sandbox.guest import SOLUTION
from simct_pl.evaluation.sandbox.guest.suite import checks_something
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
        entry = _first_import(setup) if setup else entry_of(tests[0])
        verdict = self.sandbox.run_tests(code_of(response, entry), tests, setup, entry)
        if verdict.reason == UNGRADABLE:
            raise _unfit(prompt, f"tests that tell right from wrong here: {verdict.detail}")
        return float(verdict.passed)


class ProgramGrader(Grader):
    """Tests as what a program reads and prints: {"inputs": […], "outputs": […]} (TACO), or "input" and "output"
    (CodeContests).

    Args:
        sandbox: its limits, those of each test. max_tests: only the first ones are run; some problems have hundreds.

    Raises:
        RecipeError: for less than one test.
    """

    def __init__(self, sandbox: Sandbox = Sandbox(), max_tests: int = 20) -> None:  # noqa: B008 - frozen
        if max_tests < 1:
            raise RecipeError(
                f"max_tests is {max_tests}; expected at least 1: without a test, all code would be right."
            )
        self.sandbox, self.max_tests = sandbox, max_tests

    @override
    def __call__(self, prompt: Prompt, response: str) -> float:
        return grade_program(self.sandbox, response, pairs_of(prompt)[: self.max_tests]).score


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
            try:
                entry_of(tests[0])
            except (SyntaxError, ValueError) as error:
                raise _unfit(prompt, "a list of Python statements") from error
            return "", list(tests)
        raise _unfit(prompt, "a list of statements")
    try:
        module = ast.parse(answer)
    except (SyntaxError, ValueError) as error:
        raise _unfit(prompt, "a JSON list of statements, or Python with functions named test_…") from error
    found = [node for node in module.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test")]
    if not any(map(checks_something, found)):
        raise _unfit(prompt, "functions named test_… that check something")
    # The solution can be imported there; pytest cannot.
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


def _first_import(setup: str) -> str | None:
    """The first name that tests import from the solution."""
    nodes = [node for node in ast.walk(ast.parse(setup)) if isinstance(node, ast.ImportFrom)]
    return next((alias.name for node in nodes if node.module == SOLUTION for alias in node.names), None)


def _is_left_out(node: ast.stmt) -> bool:
    """An import of pytest by its own name, which nothing may need."""
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
