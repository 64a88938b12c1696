"""Which training prompts overlap texts that they must not: test prompts, or prompts of another source.

In: sets of prompts, by name. Out: for a training prompt, the first text that it overlaps, if any. Two prompts overlap
when they share a run of `num_words` words (13 is GPT-3's choice), or are equal as words: short ones have no such run.
"""

from __future__ import annotations

from dataclasses import dataclass

from simct_pl.data.words import runs_of, words_of
from simct_pl.errors import RecipeError


@dataclass(frozen=True)
class Overlap:
    """name, index: of the text that is overlapped. shared: the words in common."""

    name: str
    index: int
    shared: str


class OverlapIndex:
    """Runs of words, each with the first text that holds it.

    Args:
        num_words: length of a run. mask_numbers: texts that differ in their numbers only count as equal.

    Raises:
        RecipeError: for a length below 2, which nearly every text would share.
    """

    def __init__(self, num_words: int = 13, mask_numbers: bool = False) -> None:
        if num_words < 2:
            raise RecipeError(f"num_words is {num_words}; expected at least 2 (13 is usual).")
        self.num_words, self.mask_numbers = num_words, mask_numbers
        self._runs: dict[int, tuple[str, int]] = {}  # by hash: 8 bytes stand for a run's text
        self._whole: dict[int, tuple[str, int]] = {}

    def add(self, name: str, index: int, text: str) -> None:
        """Take in a text that no training prompt may overlap."""
        words = words_of(text, self.mask_numbers)
        if not words:
            return
        self._whole.setdefault(hash(tuple(words)), (name, index))
        # The first text that holds a run keeps it: a report names one, and always the same.
        for run in runs_of(words, self.num_words):
            self._runs.setdefault(hash(run), (name, index))

    def find(self, text: str) -> Overlap | None:
        """The text that this one overlaps: an equal one if there is one, else by the first run that is shared."""
        words = words_of(text, self.mask_numbers)
        # Equal texts first, whatever their length; then the first run in common.
        if found := self._whole.get(hash(tuple(words))):
            return Overlap(*found, " ".join(words))
        for run in runs_of(words, self.num_words):
            if found := self._runs.get(hash(run)):
                return Overlap(*found, " ".join(run))
        return None
