"""Small languages: every text with its probability, and what two models that agree about them say token by token."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from tests.reference.vocabulary import Side, greedy_ids

Part = dict[str, float]


def texts(*parts: Part) -> Part:
    """Every way to write one piece after another."""
    return {
        "".join(text for text, _ in pieces): math.prod(p for _, p in pieces)
        for pieces in itertools.product(*(part.items() for part in parts))
    }


def vocabulary(alphabet: str, *tokens: str) -> Side:
    """Characters and longer tokens, a stop and an unused control token."""
    pieces = [character.encode() for character in dict.fromkeys(alphabet)] + [token.encode() for token in tokens]
    return Side((*dict.fromkeys(pieces), None, None), (len(dict.fromkeys(pieces)),))


@dataclass(frozen=True)
class Language:
    """One distribution over texts, written by both models in their own greedy tokens and then a stop."""

    student: Side
    teacher: Side
    probability: Part

    @cached_property
    def written(self) -> list[tuple[float, list[int], list[int]]]:
        """(probability, student ids, teacher ids) of each text."""
        total = sum(self.probability.values())
        return [
            (
                p / total,
                *([*greedy_ids(side, text.encode()), side.stop_ids[0]] for side in (self.student, self.teacher)),
            )
            for text, p in self.probability.items()
        ]

    def rows(self, place: int, smoothing: float) -> dict[tuple[int, ...], Tensor]:
        """Log-probabilities of the next token after each prefix; place: 1 the student's, 2 the teacher's."""
        size = len((self.student, self.teacher)[place - 1].tokens)
        mass: dict[tuple[int, ...], Tensor] = {}
        for entry in self.written:
            ids: list[int] = entry[place]  # type: ignore[assignment]
            for i, token in enumerate(ids):
                row = mass.setdefault(tuple(ids[:i]), torch.zeros(size, dtype=torch.float64))
                row[token] += entry[0]
        return {prefix: ((1 - smoothing) * row / row.sum() + smoothing / size).log() for prefix, row in mass.items()}


DIGITS = [str(digit) for digit in range(10)]
PAIRS = [f"{number:02d}" for number in range(100)]
SUMS = texts(
    {"1": 0.3, "13": 0.4, "130": 0.1, "2": 0.2},
    {"+": 1.0},
    {"25": 0.6, "2": 0.2, "257": 0.2},
    {"=": 1.0},
    {"3": 0.1, "38": 0.6, "48": 0.1, "380": 0.2},
    {".": 1.0},
)
WORDS = texts(
    {"un": 0.5, "hap": 0.3, "the": 0.2},
    {"happy": 0.5, "do": 0.2, "ing": 0.3},
    {" ": 1.0},
    {"happy": 0.3, "hap": 0.3, "there": 0.4},
)
SPACES = texts(
    {"a\n": 1.0},
    {"  ": 0.2, "    ": 0.5, "      ": 0.1, " ": 0.2},
    {"r": 0.5, "#": 0.3, "x": 0.2},
    {"\n\n": 0.4, "\n": 0.6},
)
INDENTED = texts(
    {"a": 0.6, "#": 0.4},
    {"  ": 0.4, "    ": 0.6},
    {"return": 0.3, "ret": 0.1, "re": 0.1, "if": 0.2, "then": 0.2, "in": 0.1},
    {"#": 0.5, " if": 0.3, " then": 0.2},
)
_SUM, _WORD, _SPACE, _CODE = "0123456789+=.", "unhapthedoigry ", "a r#x\n", "a returnifh#"
_SPACED = vocabulary(_CODE, "   ", " r", " re", " ret", " return", " i", " if", " th", " then", "in")
_UNSPACED = vocabulary(_CODE, "  ", "    ", "re", "return", "if", "the", "in")
LANGUAGES = {
    "digits from pairs": Language(vocabulary(_SUM), vocabulary(_SUM, *PAIRS), SUMS),
    "pairs from digits": Language(vocabulary(_SUM, *PAIRS), vocabulary(_SUM), SUMS),
    "some pairs from others": Language(vocabulary(_SUM, *PAIRS[::3]), vocabulary(_SUM, *PAIRS[::2]), SUMS),
    "words": Language(
        vocabulary(_WORD, "un", "hap", "happy", "unhap", " the", " hap"),
        vocabulary(_WORD, "ha", "pp", "py", "ing", "hap", "the", "there", "uni"),
        WORDS,
    ),
    "white space": Language(
        vocabulary(_SPACE, "  ", "    ", " r", " x"), vocabulary(_SPACE, "   ", "      ", "\n\n"), SPACES
    ),
    "words behind spaces": Language(_UNSPACED, _SPACED, INDENTED),
    "words with a space": Language(_SPACED, _UNSPACED, INDENTED),
}
