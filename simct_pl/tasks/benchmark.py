"""The embedded task's held-out problems as a benchmark, which needs no data."""

from __future__ import annotations

from simct_pl.evaluation.benchmark import Benchmark, Grade, Problem
from simct_pl.evaluation.benchmarks.graded_prompts import graded
from simct_pl.tasks.arithmetic import TotalGrader, distinct_problems


class ArithmeticBenchmark(Benchmark):
    """Chained additions that nothing was trained on; right is the right total.

    Args:
        num_problems: of ArithmeticDataModule's held-out prompts, in the same order. num_terms, limit, subtract_share,
            skip: as there, the last as its val_skip.
        name: of the metrics; two of different problems can stand beside each other. max_tokens: of a response.
    """

    def __init__(
        self,
        num_problems: int = 200,
        num_terms: int | list[int] = 3,
        limit: int = 50,
        subtract_share: float = 0.0,
        skip: int = 0,
        name: str = "arithmetic",
        max_tokens: int = 40,
    ) -> None:
        self.name, self.max_tokens = name, max_tokens
        self.num_problems, self.num_terms, self.limit = num_problems, num_terms, limit
        self.subtract_share, self.skip = subtract_share, skip

    def problems(self) -> list[Problem]:
        count = self.skip + self.num_problems
        found = distinct_problems(0, count, self.num_terms, self.limit, True, self.subtract_share)[self.skip :]
        return [Problem(problem.question, problem.question, gold=str(problem.total)) for problem in found]

    def grade(self, problem: Problem, response: str) -> Grade:
        return graded(TotalGrader(), problem, response)
