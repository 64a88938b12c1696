"""What a grader is: one prompt and one response in, a score in [0, 1] out."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from decimal import Decimal

from simct_pl.errors import PromptDataError
from simct_pl.types import Prompt

UNGRADABLE = "ungradable"  # the reason of a grade that no response could have made right
NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


class Grader(ABC):
    """Scores held-out responses."""

    @abstractmethod
    def __call__(self, prompt: Prompt, response: str) -> float:
        """1.0 for a right response, 0.0 for a wrong one, or anything between."""


class LastNumberGrader(Grader):
    """Right if the last number of the response equals the prompt's answer as a number (commas ignored)."""

    def __call__(self, prompt: Prompt, response: str) -> float:
        found = NUMBER.findall(response)
        if prompt.answer is None:
            return 0.0
        answer = NUMBER.findall(prompt.answer)
        if len(answer) != 1:
            raise PromptDataError(
                f"Prompt {prompt.index}: the answer {prompt.answer!r:.80} holds {len(answer)} numbers; expected 1."
            )
        return float(bool(found) and _value(found[-1]) == _value(answer[0]))


def _value(number: str) -> Decimal:
    return Decimal(number.replace(",", ""))  # exact: as floats, long numbers that differ would be equal
