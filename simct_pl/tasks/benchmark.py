"""The embedded task's held-out problems as a benchmark, which needs no data."""

from __future__ import annotations

from simct_pl.evaluation.benchmark import Benchmark, Grade, Problem
from simct_pl.evaluation.benchmarks.graded_prompts import graded
from simct_pl.tasks.arithmetic import TotalGrader, distinct_problems


class ArithmeticBenchmark(Benchmark):
    """Chained additions that nothing was trained on; right is the right total.

    Args:
        num_problems: of ArithmeticDataModule's held-out prompts, in the same order. num_terms, limit: as there.
    """

    name = "arithmetic"
    max_tokens = 40

    def __init__(self, num_problems: int = 200, num_terms: int = 3, limit: int = 50) -> None:
        self.num_problems, self.num_terms, self.limit = num_problems, num_terms, limit

    def problems(self) -> list[Problem]:
        found = distinct_problems(0, self.num_problems, self.num_terms, self.limit, held_out=True)
        return [Problem(problem.question, problem.question, gold=str(problem.total)) for problem in found]

    def grade(self, problem: Problem, response: str) -> Grade:
        return graded(TotalGrader(), problem, response)
