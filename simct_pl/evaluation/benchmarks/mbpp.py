"""MBPP (Austin et al. 2021, arXiv 2108.07732, CC BY 4.0): short functions, three assertions each.

Two sets, each with its splits: 974 problems of which 500 are scored, or 427 sanitized ones of which 257 are. Their
scores are not comparable, so the name says which.
"""

from __future__ import annotations

from typing import Literal, get_args

from simct_pl.errors import require_choice
from simct_pl.evaluation.benchmark import Problem, Rows
from simct_pl.evaluation.code_benchmark import CodeBenchmark, entry_of
from simct_pl.evaluation.sandbox.sandbox import Sandbox

Subset = Literal["full", "sanitized"]
Split = Literal["test", "validation", "train", "prompt", "all"]

# Task ids, ends included; the paper's, of both sets.
IDS: dict[str, tuple[int, int]] = {
    "prompt": (1, 10),
    "test": (11, 510),
    "validation": (511, 600),
    "train": (601, 974),
    "all": (1, 974),
}


class MBPP(CodeBenchmark):
    """Mostly basic Python problems; the prompt shows the assertions, as the paper's does.

    Args:
        subset: which of the two sets the path holds. split: which problems of it are scored, by task id.
        path: a file, or a hub name. sandbox: limits of the code.
    """

    max_tokens = 2048

    def __init__(
        self,
        subset: Subset = "full",
        split: Split = "test",
        path: str = "google-research-datasets/mbpp",
        sandbox: Sandbox = Sandbox(),  # noqa: B008 - frozen
    ) -> None:
        super().__init__(sandbox)
        require_choice("subset", subset, get_args(Subset))
        require_choice("split", split, get_args(Split))
        self.subset, self.split, self.path = subset, split, path
        self.name = f"mbpp_{subset}_{split}"

    def problems(self) -> list[Problem]:
        text, setup = ("text", "test_setup_code") if self.subset == "full" else ("prompt", "test_imports")
        rows = Rows(self.path, ("task_id", text, setup, "test_list"), name=self.subset, split=self.split)
        first, last = IDS[self.split]
        return rows.problems(
            lambda _, row: (
                _problem(row["task_id"], row[text], row[setup], row["test_list"])
                if first <= row["task_id"] <= last
                else None
            )
        )


def _problem(task_id: int, text: str, setup: str | list[str], tests: list[str]) -> Problem:
    setup = setup if isinstance(setup, str) else "\n".join(setup)
    shown = "\n".join([*([setup] if setup else []), *tests])
    prompt = (
        f"{text.strip()}\n\nYour code should pass these tests:\n\n```python\n{shown}\n```\n\n"
        "Answer with the function in one Python code block (```python … ```)."
    )
    return Problem(str(task_id), prompt, setup=setup, tests=tuple(tests), entry=entry_of(tests[0]))
