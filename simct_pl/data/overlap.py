"""Which training prompts overlap texts that they must not: test prompts, or prompts of another source.

In: sets of prompts, by name. Out: for a training prompt, the first text that it overlaps, if any. Two prompts overlap
when they share an n-gram of `num_words` words (13 is GPT-3's choice), or are equal as words: short ones have none.
"""

from __future__ import annotations

from dataclasses import dataclass

from simct_pl.data.words import ngrams, words_of
from simct_pl.errors import RecipeError


@dataclass(frozen=True)
class Overlap:
    """name, index: of the text that is overlapped. shared: the words in common."""

    name: str
    index: int
    shared: str


class OverlapIndex:
    """N-grams of words, each with the first text that holds it.

    Args:
        num_words: of an n-gram. mask_numbers: texts that differ in their numbers only count as equal.

    Raises:
        RecipeError: for a length below 2, which nearly every text would share.
    """

    def __init__(self, num_words: int = 13, mask_numbers: bool = False) -> None:
        if num_words < 2:
            raise RecipeError(f"num_words is {num_words}; expected at least 2 (13 is usual).")
        self.num_words, self.mask_numbers = num_words, mask_numbers
        self._ngrams: dict[int, tuple[str, int]] = {}  # by hash: 8 bytes stand for the words
        self._whole: dict[int, tuple[str, int]] = {}

    def add(self, name: str, index: int, text: str) -> None:
        """Take in a text that no training prompt may overlap."""
        words = words_of(text, self.mask_numbers)
        if not words:
            return
        self._whole.setdefault(hash(tuple(words)), (name, index))
        # The first text that holds an n-gram keeps it: a report names one, and always the same.
        for ngram in ngrams(words, self.num_words):
            self._ngrams.setdefault(hash(ngram), (name, index))

    def find(self, text: str) -> Overlap | None:
        """The text that this one overlaps: an equal one if there is one, else by the first n-gram that is shared."""
        words = words_of(text, self.mask_numbers)
        # Equal texts first, whatever their length; then the first n-gram in common.
        if found := self._whole.get(hash(tuple(words))):
            return Overlap(*found, " ".join(words))
        for ngram in ngrams(words, self.num_words):
            if found := self._ngrams.get(hash(ngram)):
                return Overlap(*found, " ".join(ngram))
        return None
