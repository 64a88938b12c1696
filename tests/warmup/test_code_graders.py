"""Code graded by tests in the forms of the public data sets: right code passes, wrong and hostile code does not."""

from __future__ import annotations

import json

import pytest

from simct_pl.errors import PromptDataError, RecipeError
from simct_pl.evaluation.sandbox.sandbox import Sandbox
from simct_pl.types import Prompt
from simct_pl.warmup import code_graders
from simct_pl.warmup.code_graders import AssertGrader, ProgramGrader, pairs_of
from tests.evaluation.machine import bubblewrap_works

SANDBOX = Sandbox(time_limit=5, unsafe=not bubblewrap_works())
RIGHT = "Here it is:\n```python\ndef add(a, b):\n    return a + b\n```"
WRONG = RIGHT.replace("+ b", "- b")
EXIT = RIGHT.replace("return a + b", "raise SystemExit(0)")
ASSERTS = json.dumps(["assert add(1, 2) == 3", "assert add(-1, 1) == 0"])
PYTEST = """from solution import add

def test_small():
    assert add(1, 2) == 3

def test_large():
    assert add(10**9, 1) == 10**9 + 1
"""
PROGRAM = "```python\nprint(sum(map(int, input().split())))\n```"
STDIN = json.dumps({"inputs": ["1 2\n", "3 4\n"], "outputs": ["3\n", "7\n"]})
CONTESTS = json.dumps({"input": ["1 2\n"], "output": [["3"]]})


def prompt(answer: str) -> Prompt:
    return Prompt(0, ({"role": "user", "content": "add"},), answer=answer)


@pytest.mark.parametrize("tests", [ASSERTS, PYTEST], ids=["asserts", "pytest"])
@pytest.mark.parametrize(("response", "score"), [(RIGHT, 1.0), (WRONG, 0.0), (EXIT, 0.0), ("I do not know.", 0.0)])
def test_functions(response: str, score: float, tests: str) -> None:
    assert AssertGrader(SANDBOX)(prompt(tests), response) == score


@pytest.mark.parametrize("tests", [STDIN, CONTESTS], ids=["taco", "contests"])
@pytest.mark.parametrize(("response", "score"), [(PROGRAM, 1.0), (PROGRAM.replace("sum", "max"), 0.0), (EXIT, 0.0)])
def test_programs(response: str, score: float, tests: str) -> None:
    assert ProgramGrader(SANDBOX)(prompt(tests), response) == score


def test_only_the_first_tests_are_run() -> None:
    tests = json.dumps({"inputs": ["1 2\n", "3 4\n"], "outputs": ["3\n", "wrong\n"]})
    assert ProgramGrader(SANDBOX, max_tests=1)(prompt(tests), PROGRAM) == 1.0


def test_what_tests_import_from_the_solution_is_the_code_s() -> None:
    _, tests = code_graders.tests_of(prompt(PYTEST))
    assert tests == ["test_small()", "test_large()"]
    renamed = PYTEST.replace("import add", "import add as plus, sum").replace("assert add(", "assert sum(1) and plus(")
    assert AssertGrader(SANDBOX)(prompt(renamed), RIGHT.replace("def add", "def sum(x): return x\ndef add")) == 1.0
    assert AssertGrader(SANDBOX)(prompt(renamed), RIGHT) == 0.0


def test_functions_called_like_built_in_ones_and_modules_are_the_code_s() -> None:
    for name in ("sum", "queue", "statistics"):
        tests = ASSERTS.replace("add", name)
        assert AssertGrader(SANDBOX)(prompt(tests), RIGHT.replace("add", name)) == 1.0
        assert AssertGrader(SANDBOX)(prompt(tests), WRONG.replace("add", name)) == 0.0


@pytest.mark.parametrize("tests", [ASSERTS, PYTEST], ids=["asserts", "pytest"])
def test_an_example_of_use_behind_the_answer_is_not_the_answer(tests: str) -> None:
    assert AssertGrader(SANDBOX)(prompt(tests), f"{RIGHT}\nUse it:\n```python\nprint(add(1, 2))\n```") == 1.0


@pytest.mark.parametrize(
    "answer",
    [
        '["pass"]',
        '["", "# later"]',
        '["import numpy\\nassert add(1, 2) == 3"]',
        '["assert add(1, 2) == 3", "assert ("]',
    ],
)
def test_tests_that_no_code_could_pass_or_fail_are_ungradable(answer: str) -> None:
    with pytest.raises(PromptDataError, match="not tests that tell right from wrong"):
        AssertGrader(SANDBOX)(prompt(answer), RIGHT)


def test_no_program_is_right_without_a_test() -> None:
    with pytest.raises(RecipeError, match="max_tests is 0"):
        ProgramGrader(SANDBOX, max_tests=0)


def test_an_import_of_pytest_that_nothing_needs_fails_no_right_code() -> None:
    assert AssertGrader(SANDBOX)(prompt(f"import pytest\n{PYTEST}"), RIGHT) == 1.0


@pytest.mark.parametrize(
    "answer",
    [
        "import pytest\ndef test_f():\n    with pytest.raises(ValueError):\n        f()",
        "from pytest import raises\ndef test_f():\n    with raises(ValueError):\n        f()",
        "import pytest as pt\ndef test_f():\n    pt.skip()",
        "def test_f(tmp_path):\n    assert f(tmp_path)",
    ],
)
def test_tests_that_need_pytest_cannot_be_graded_and_are_not_called_wrong(answer: str) -> None:
    with pytest.raises(PromptDataError, match="need neither pytest nor its fixtures"):
        AssertGrader(SANDBOX)(prompt(answer), RIGHT)


@pytest.mark.parametrize("answer", ["", "[]", "[1]", "[", "x = 1", "def", '["def"]', "def test_f():\n    pass"])
def test_tests_that_cannot_be_run_are_refused(answer: str) -> None:
    with pytest.raises(PromptDataError, match="Prompt 0: the tests"):
        code_graders.tests_of(prompt(answer))


@pytest.mark.parametrize(
    "answer",
    ["", "3", '{"inputs": []}', '{"inputs": ["1"], "outputs": []}', '{"fn_name": "f", "inputs": [1], "outputs": [1]}'],
)
def test_programs_tests_that_cannot_be_run_are_refused(answer: str) -> None:
    with pytest.raises(PromptDataError, match="Prompt 0: the tests"):
        pairs_of(prompt(answer))
