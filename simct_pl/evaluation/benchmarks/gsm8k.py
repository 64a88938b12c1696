"""GSM8K (Cobbe et al. 2021, arXiv 2110.14168): 1,319 test problems, integer answers after `####`."""

from __future__ import annotations

from simct_pl.errors import EvaluationError
from simct_pl.evaluation.benchmark import MathBenchmark, Problem, Rows


class GSM8K(MathBenchmark):
    """Grade-school maths.

    Args:
        path: a file with `question` and `answer`, or a hub name. time_limit: seconds of one comparison.
    """

    name = "gsm8k"

    def __init__(self, path: str = "openai/gsm8k", time_limit: float = 15.0) -> None:
        super().__init__(time_limit)
        self.path = path

    def problems(self) -> list[Problem]:
        rows = Rows(self.path, ("question", "answer"), name="main")
        return rows.problems(lambda i, row: Problem(str(i), self.ask(row["question"]), self._gold(i, row["answer"])))

    def _gold(self, index: int, answer: str) -> str:
        _, mark, gold = answer.rpartition("####")
        gold = gold.strip().replace(",", "")
        if not mark or not gold.removeprefix("-").isdecimal():
            raise EvaluationError(
                f"Row {index} of {self.path!r} ends in {answer[-40:]!r}; expected #### and an integer."
            )
        return gold
