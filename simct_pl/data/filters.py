"""Filters of a mixture's rows: a row and its prompt in, whether it stays out. A variant is a class, swapped by
class_path; what a filter drops is counted under its name.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from typing_extensions import override

from simct_pl.data.tools import said_in
from simct_pl.errors import RecipeError
from simct_pl.types import Prompt


class RowFilter(ABC):
    """Says which rows of a source may be drawn.

    reason: why a row was dropped, as the manifest counts it.
    """

    reason: str

    @abstractmethod
    def __call__(self, row: Mapping[str, Any], prompt: Prompt) -> bool:
        """Whether the row stays."""


class PromptLength(RowFilter):
    """Keeps prompts whose characters, over all messages, are within bounds."""

    reason = "prompt_length"

    def __init__(self, min_chars: int = 1, max_chars: int = 8_000) -> None:
        if not 0 <= min_chars <= max_chars:
            raise RecipeError(f"min_chars={min_chars}, max_chars={max_chars}; expected 0 <= min_chars <= max_chars.")
        self.min_chars, self.max_chars = min_chars, max_chars

    @override
    def __call__(self, row: Mapping[str, Any], prompt: Prompt) -> bool:
        return self.min_chars <= len(text_of(prompt)) <= self.max_chars


class FieldIn(RowFilter):
    """Keeps rows whose field, as a text, is one of some values."""

    def __init__(self, field: str, values: list[str]) -> None:
        self.field, self.values = field, frozenset(values)
        self.reason = f"{field}_not_wanted"

    @override
    def __call__(self, row: Mapping[str, Any], prompt: Prompt) -> bool:
        return str(row.get(self.field)) in self.values


class FieldBetween(RowFilter):
    """Keeps rows whose field is a number within bounds, both included; a field that is no number drops the row."""

    def __init__(self, field: str, minimum: float = float("-inf"), maximum: float = float("inf")) -> None:
        self.field, self.minimum, self.maximum = field, minimum, maximum
        self.reason = f"{field}_out_of_bounds"

    @override
    def __call__(self, row: Mapping[str, Any], prompt: Prompt) -> bool:
        try:
            return self.minimum <= float(row.get(self.field, "")) <= self.maximum
        except (TypeError, ValueError):
            return False


class PromptWithout(RowFilter):
    """Drops prompts in which a regular expression is found: pictures, links, another language."""

    def __init__(self, pattern: str) -> None:
        try:
            self.pattern = re.compile(pattern)
        except re.error as error:
            raise RecipeError(f"pattern {pattern!r} is no regular expression: {error}.") from error
        self.reason = f"matches_{pattern}"

    @override
    def __call__(self, row: Mapping[str, Any], prompt: Prompt) -> bool:
        return self.pattern.search(text_of(prompt)) is None


def text_of(prompt: Prompt) -> str:
    """All that a prompt says, a message a line."""
    return "\n".join(map(said_in, prompt.messages))
