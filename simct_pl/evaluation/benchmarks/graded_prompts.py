"""Benchmarks of one's own: prompts out of any file, and any grader."""

from __future__ import annotations

import logging
from typing import Any

from simct_pl.data.source import PromptSource
from simct_pl.errors import PromptDataError, RecipeError
from simct_pl.evaluation.benchmark import Benchmark, Grade, Problem
from simct_pl.evaluation.grader import UNGRADABLE, Grader
from simct_pl.types import Prompt

logger = logging.getLogger(__name__)


class GradedPrompts(Benchmark):
    """Prompts with answers, read as a recipe's data are: questions, or conversations that are asked as they are.

    Args:
        name: of the metrics. source: the file and its fields; answer_field is what the grader compares with.
        grader: right is a score of at least one half. max_tokens: of a response.

    Raises:
        RecipeError: for a name that cannot be a folder.
    """

    def __init__(self, name: str, source: PromptSource, grader: Grader, max_tokens: int = 4096) -> None:
        if name in ("", ".", "..") or "/" in name:
            raise RecipeError(f"name is {name!r}; expected one that can be a folder's.")
        self.name, self.max_tokens = name, max_tokens
        self.source, self.grader = source, grader

    def problems(self) -> list[Problem]:
        prompts = [self.source.prompt(index, row) for index, row in self.source.rows()]
        found = [self._problem(prompt) for prompt in prompts if not self.source.is_too_long(prompt)]
        if len(found) < len(prompts):
            logger.warning("%s: %d prompts are left out as too long.", self.name, len(prompts) - len(found))
        return found

    def grade(self, problem: Problem, response: str) -> Grade:
        return graded(self.grader, problem, response)

    def grading(self) -> dict[str, Any]:
        return {"grader": type(self.grader).__name__}

    def _problem(self, prompt: Prompt) -> Problem:
        words, gold = prompt.messages[-1]["content"], prompt.answer or ""
        if len(prompt.messages) == 1 and not prompt.tools:
            return Problem(str(prompt.index), words, gold=gold)
        return Problem(str(prompt.index), words, gold=gold, messages=prompt.messages, tools=prompt.tools)


def graded(grader: Grader, problem: Problem, response: str) -> Grade:
    """A grader's score as a grade: right from one half on, so that what is counted is what is averaged.

    Raises:
        SimctError: what is no fault of the problem, such as a missing package.
    """
    try:
        right = grader(problem.asked, response) >= 0.5
    except PromptDataError as error:  # its answer is not what the grader expects
        return Grade(0.0, UNGRADABLE, str(error))
    return Grade(float(right), "right" if right else "wrong")
