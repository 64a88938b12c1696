"""MATH-500 (Lightman et al. 2023, arXiv 2305.20050, of MATH, arXiv 2103.03874): 500 problems, answers in LaTeX."""

from __future__ import annotations

from simct_pl.evaluation.benchmark import MathBenchmark, Problem, Rows


class MATH500(MathBenchmark):
    """Competition maths.

    Args:
        path: a file with `problem` and `answer`, or a hub name. time_limit: seconds of one comparison.
    """

    name = "math500"

    def __init__(self, path: str = "HuggingFaceH4/MATH-500", time_limit: float = 15.0) -> None:
        super().__init__(time_limit)
        self.path = path

    def problems(self) -> list[Problem]:
        return Rows(self.path, ("problem", "answer")).problems(
            lambda i, row: Problem(str(row.get("unique_id", i)), self.ask(row["problem"]), gold=row["answer"])
        )
