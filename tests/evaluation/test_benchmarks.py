"""Each benchmark on a small file of its format: prompts, golds, and right and wrong responses."""

from __future__ import annotations

import base64
import json
import os
import pickle
import zlib
from pathlib import Path

import pytest

from simct_pl.data.source import PromptSource
from simct_pl.errors import EvaluationError, MissingFileError, PromptDataError, RecipeError
from simct_pl.evaluation.benchmark import Benchmark, Grade, Problem, subset
from simct_pl.evaluation.benchmarks import humaneval, livecodebench
from simct_pl.evaluation.benchmarks.graded_prompts import GradedPrompts
from simct_pl.evaluation.benchmarks.gsm8k import GSM8K
from simct_pl.evaluation.benchmarks.humaneval import HumanEval, without_function
from simct_pl.evaluation.benchmarks.livecodebench import LiveCodeBench, hidden_tests
from simct_pl.evaluation.benchmarks.math500 import MATH500
from simct_pl.evaluation.benchmarks.mbpp import MBPP
from simct_pl.evaluation.benchmarks.programs import same_output
from simct_pl.evaluation.code_benchmark import CodeBenchmark, code_of, entry_of
from simct_pl.evaluation.grader import Grader, LastNumberGrader
from simct_pl.evaluation.sandbox.sandbox import Sandbox
from simct_pl.evaluation.scores import Item, summarise
from simct_pl.types import Prompt
from tests.evaluation import samples
from tests.evaluation.machine import bubblewrap_works
from tests.evaluation.samples import fenced, write_jsonl

SANDBOX = Sandbox(time_limit=5.0)
needs_bubblewrap = pytest.mark.skipif(not bubblewrap_works(), reason="no bubblewrap that works on this machine")


def scores(benchmark: Benchmark, problem: Problem, *responses: str) -> list[float]:
    return [benchmark.grade(problem, response).score for response in responses]


def test_gsm8k(tmp_path: Path) -> None:
    benchmark = GSM8K(write_jsonl(tmp_path / "g.jsonl", samples.GSM8K))
    problems = benchmark.problems()
    assert [problem.gold for problem in problems] == ["7", "1500", "-3"]
    assert problems[0].prompt.startswith("Ann has 3 pens and buys 4. How many has she?\n\n")
    assert r"\boxed{}" in problems[0].prompt
    assert scores(benchmark, problems[1], r"\boxed{1,500}", r"\boxed{1500.0}", r"\boxed{15}", "1500") == [1, 1, 0, 0]
    assert benchmark.grade(problems[1], "1500").reason == "no_answer"
    benchmark.close()


def test_gsm8k_refuses_a_row_without_a_gold(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "g.jsonl", [{"question": "q", "answer": "about #### seven"}])
    with pytest.raises(EvaluationError, match=r"Row 0 of .*expected #### and an integer"):
        GSM8K(path).problems()


def test_rows_of_another_data_set_are_named(tmp_path: Path) -> None:
    gsm8k = write_jsonl(tmp_path / "g.jsonl", [*samples.GSM8K[:1], {"question": "q", "answer": 5}])
    with pytest.raises(EvaluationError, match=r"Row 1 of .*g.jsonl' cannot be read as a problem \(AttributeError"):
        GSM8K(gsm8k).problems()
    mbpp = write_jsonl(tmp_path / "m.jsonl", [{"task_id": 11, "text": "t", "test_setup_code": "", "test_list": []}])
    with pytest.raises(EvaluationError, match=r"Row 0 of .*m.jsonl' .*IndexError"):
        MBPP(path=mbpp).problems()
    texts = dict.fromkeys(livecodebench.FIELDS, "nonsense")
    with pytest.raises(EvaluationError, match=r"Row 0 of .*JSONDecodeError"):
        LiveCodeBench(write_jsonl(tmp_path / "l.jsonl", [texts])).problems()
    texts = dict.fromkeys(humaneval.FIELDS, "no python")
    with pytest.raises(EvaluationError, match=r"Row 0 of .*SyntaxError"):
        HumanEval(write_jsonl(tmp_path / "h.jsonl", [texts])).problems()
    (tmp_path / "broken.jsonl").write_text('{"question": "a", "answer": "#### 1"}\n{"question": \n')
    with pytest.raises(PromptDataError, match=r"Line 2 of '.*broken.jsonl' is no JSON"):
        GSM8K(str(tmp_path / "broken.jsonl")).problems()


class Half(Grader):
    """Half right, or as much as the prompt says."""

    def __call__(self, prompt: Prompt, response: str) -> float:
        return float(prompt.answer or 0.5)


def test_prompts_of_ones_own_are_right_or_wrong_and_long_ones_stay_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"prompt": text, "gold": gold} for text, gold in (("a", 0.4), ("bb", 0.5), ("much longer", 1.0))]
    source = PromptSource(write_jsonl(tmp_path / "p.jsonl", rows), answer_field="gold", max_prompt_chars=4)
    benchmark = GradedPrompts("own", source, Half())
    problems = benchmark.problems()
    assert [problem.id for problem in problems] == ["0", "1"]
    assert "own: 1 prompts are left out as too long" in caplog.text
    grades = [benchmark.grade(problem, "") for problem in problems]
    assert grades == [Grade(0.0, "wrong"), Grade(1.0, "right")]
    with pytest.raises(RecipeError, match="can be a folder's"):
        GradedPrompts("..", source, Half())


def test_math500(tmp_path: Path) -> None:
    benchmark = MATH500(write_jsonl(tmp_path / "m.jsonl", samples.MATH500))
    [problem] = benchmark.problems()
    assert (problem.id, problem.gold) == ("test/prealgebra/1.json", r"\frac{1}{6}")
    assert scores(benchmark, problem, r"\boxed{1/6}", r"\boxed{\dfrac16}", r"\boxed{1/3}") == [1, 1, 0]
    benchmark.close()


@pytest.mark.parametrize(
    ("split", "ids"), [("prompt", [5]), ("test", [11, 510]), ("validation", [520]), ("train", [700])]
)
def test_mbpp_splits_by_task_id(tmp_path: Path, split: str, ids: list[int]) -> None:
    benchmark = MBPP("full", split, write_jsonl(tmp_path / "m.jsonl", samples.MBPP_FULL))  # type: ignore[arg-type]
    assert benchmark.name == f"mbpp_full_{split}"
    assert benchmark.max_tokens == 2048
    assert [problem.id for problem in benchmark.problems()] == [str(task_id) for task_id in ids]


@needs_bubblewrap
def test_mbpp_full_and_sanitized(tmp_path: Path) -> None:
    rows = [*samples.MBPP_FULL, samples.MBPP_SETUP]
    full = MBPP("full", "test", write_jsonl(tmp_path / "full.jsonl", rows), SANDBOX)
    problem, _, with_setup = full.problems()
    assert "assert double(2) == 4" in problem.prompt
    wrong = "def double(x):\n    return 4"
    assert scores(full, problem, fenced(rows[0]["code"]), fenced(wrong), "no code", "") == [1, 0, 0, 0]
    assert scores(full, with_setup, fenced(samples.MBPP_SETUP["code"])) == [1]
    path = tmp_path / "sanitized.json"
    path.write_text(json.dumps(samples.MBPP_SANITIZED))
    sanitized = MBPP("sanitized", "test", str(path), SANDBOX)
    [problem] = sanitized.problems()
    assert "import math" in problem.prompt
    reference = samples.MBPP_SANITIZED[0]["code"]
    cheat = "math = type('M', (), {'isclose': lambda *a, **k: True})\ndef root(x): return 0"
    assert scores(sanitized, problem, fenced(reference), fenced(cheat)) == [1, 0]
    with pytest.raises(EvaluationError, match="has no text"):
        MBPP("full", "test", str(path)).problems()


def test_mbpp_refuses_unknown_names() -> None:
    with pytest.raises(RecipeError, match="sanitised"):
        MBPP("sanitised")  # type: ignore[arg-type]


@needs_bubblewrap
def test_humaneval(tmp_path: Path) -> None:
    benchmark = HumanEval(write_jsonl(tmp_path / "h.jsonl", samples.HUMANEVAL), SANDBOX)
    [problem] = benchmark.problems()
    row = samples.HUMANEVAL[0]
    whole = row["prompt"] + row["canonical_solution"]
    alone = "def count(xs):\n    return helper(xs)"
    cheat = "def helper(xs): return 9\ndef count(xs): return 9 if xs else 0"
    assert scores(benchmark, problem, fenced(whole), fenced(alone), fenced(cheat)) == [1, 1, 0]
    assert "helper" in without_function(row["prompt"], "count")
    assert "def count" not in without_function(row["prompt"], "count")


@needs_bubblewrap
def test_livecodebench(tmp_path: Path) -> None:
    benchmark = LiveCodeBench(write_jsonl(tmp_path / "l.jsonl", samples.LIVECODEBENCH), "made", SANDBOX)
    assert benchmark.name == "livecodebench_made"
    program, call = benchmark.problems()
    assert program.pairs == (("1 2\n", "3\n"), ("1\n2\n3\n", "6"))
    assert scores(benchmark, program, fenced(samples.STDIN_RIGHT), fenced(samples.STDIN_WRONG)) == [1, 0]
    assert scores(benchmark, call, fenced(samples.CALL_RIGHT), fenced(samples.CALL_WRONG)) == [1, 0]
    assert "class Solution" in call.prompt
    crash = benchmark.grade(program, fenced("print(3)\nraise SystemError('late')"))
    assert (crash.score, crash.reason) == (0.0, "error")


class OneProblem(CodeBenchmark):
    """One problem, with tests or without."""

    name = "tested"

    def __init__(self, *tests: str) -> None:
        super().__init__(SANDBOX)
        self.tests = tests

    def problems(self) -> list[Problem]:
        return [Problem("p", "Write f.", tests=self.tests)]


def test_a_problem_without_a_test_is_ungradable(tmp_path: Path) -> None:
    for benchmark in (OneProblem(), LiveCodeBench("nowhere", sandbox=SANDBOX)):
        grade = benchmark.grade(Problem("p", "Write f."), fenced("def f(x): return x"))
        assert (grade.score, grade.reason) == (0.0, "ungradable")
    row = {**samples.HUMANEVAL[0], "test": "def check(candidate):\n    pass"}
    [problem] = HumanEval(write_jsonl(tmp_path / "h.jsonl", [row]), SANDBOX).problems()
    assert HumanEval("nowhere", SANDBOX).grade(problem, fenced("def count(xs): return 0")).reason == "ungradable"
    maths = MATH500("nowhere")
    assert maths.grade(Problem("p", "What is 1+1?"), r"\boxed{2}").reason == "ungradable"
    prompts = GradedPrompts("own", PromptSource("nowhere.jsonl"), LastNumberGrader())
    assert prompts.grade(Problem("p", "How many?", gold="3 or 4"), "3").reason == "ungradable"


@needs_bubblewrap
def test_tests_that_check_nothing_are_ungradable_and_counted() -> None:
    grade = OneProblem("import numpy\nassert f(1) == 1").grade(
        Problem("p", "", tests=("pass",)), fenced("def f(x): return x")
    )
    assert (grade.score, grade.reason) == (0.0, "ungradable")
    item = Item("p", 0, 0, "", "stop", 1, grade.score, grade.reason)
    assert summarise("tested", [item]).reasons == {"ungradable": 1}


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("true",)


def test_a_pickle_that_names_a_function_is_not_built() -> None:
    packed = base64.b64encode(zlib.compress(pickle.dumps(Bomb()))).decode()
    with pytest.raises(EvaluationError, match=r"asks for posix\.system"):
        hidden_tests("p", packed)
    with pytest.raises(EvaluationError, match="problem p cannot be read"):
        hidden_tests("p", "not base64!")
    assert hidden_tests("p", '[{"input": "1"}]') == [{"input": "1"}]


@pytest.mark.parametrize(
    ("printed", "expected", "same"),
    [
        ("6\n", "6", True),
        ("1 \n2\n", "1\n2", True),
        ("1.5", "1.50", True),
        ("1 2\n", "1\n2", False),
        ("0.1 2", "0.10 2.0", True),
        ("YES", "Yes", False),
        ("", "0", False),
        ("6\n7", "6", False),
    ],
)
def test_outputs_are_compared_line_by_line(printed: str, expected: str, same: bool) -> None:
    assert same_output(printed, expected) is same


@pytest.mark.parametrize(
    ("response", "entry", "code"),
    [
        ("x = 1", None, "x = 1"),
        ("```python\na = 1\n```\nor\n```\nb = 2\n```", None, "b = 2"),
        ("```python\ndef f(x):\n    return x\n```\nUse:\n```python\nf(3)\n```", "f", "def f(x):\n    return x"),
        ("```python\nf = abs\n```\n```text\n3\n```", "f", "f = abs"),
        ("```py\nx = 1\n```\n```cpp\nint x;\n```", None, "x = 1"),
        ("```python\nx = 1\ny = (", None, "x = 1\ny = ("),
        ("```python\ns = '```'\n```", None, "s = '```'"),
        ("Use ```f``` so:\n```python\nx = 1\n```", None, "x = 1"),  # code within a line begins no block
        ("```python\nx = 1\n```\n```python\n```", None, "x = 1"),  # nor is an empty block an answer
        ("```python\nx = 1\n```python\ny = 2\n```", None, "y = 2"),  # the first was not ended
        ("```python\ndef f(x): return x\n```\n```python\nf == 3\n```", "f", "def f(x): return x"),
        ("```python\nf: Callable = abs\n```\n```python\nf(3)\n```", "f", "f: Callable = abs"),
        ("```python\n\n\n  async  def f(x): 0\n```\n```python\nff = 3\n```", "f", "\n\n  async  def f(x): 0"),
        ("It is:\n```python", None, "It is:\n```python"),
    ],
)
def test_code_is_found_in_a_response(response: str, entry: str | None, code: str) -> None:
    assert code_of(response, entry) == code


def test_the_function_that_an_assertion_is_about() -> None:
    assert entry_of("assert set(common((1, 2), key(3))) == set((4, 5))") == "common"
    assert entry_of("assert (depth(root)) == 2") == "depth"
    assert entry_of("assert sum(10, 15) == 6") == "sum"
    assert entry_of("assert x == 1") is None


def test_a_subset_is_spread_over_all_problems() -> None:
    problems = [Problem(str(i), "p") for i in range(10)]
    assert [problem.id for problem in subset(problems, 4)] == ["0", "2", "5", "7"]
    assert subset(problems, 10) == subset(problems, None) == problems


def test_a_missing_file_is_named() -> None:
    with pytest.raises(MissingFileError, match=r"nowhere\.jsonl"):
        GSM8K("nowhere.jsonl").problems()
