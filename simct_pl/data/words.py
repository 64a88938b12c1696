"""Texts as words, so that two spellings of one prompt are equal: for de-duplication and decontamination.

In: a text. Out: its words without case, accents, punctuation, layout and thousands commas; its n-grams; a hash.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterator, Sequence
from functools import lru_cache

# Chinese and Japanese write no spaces: each of their characters is a word. `20cm` and `20 cm` are two words both. An
# operator in front of a number is a word, or 3+4 and 3-4 would be the same problem; elsewhere it may be a list or bold.
CJK = r"\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
WORD = re.compile(rf"[{CJK}]|\d+(?:\.\d+)?|[^\W\d_{CJK}]+|(?<!\*)[-+*/^=<>](?=\s?\d)")
OPERATORS = str.maketrans({"−": "-", "–": "-", "×": "*", "·": "*", "÷": "/"})
THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
NUMBER = re.compile(r"\d+(?:\.\d+)?\Z")
ANY_NUMBER = "0"


def words_of(text: str, mask_numbers: bool = False) -> list[str]:
    """The words of a text.

    mask_numbers: write every number as 0, so that a prompt copied with other numbers has the same words.
    """
    # Full-width forms, ligatures and accents go first, case last: casefold may make new letters (ß → ss).
    plain = "".join(map(_without_accents, text)).casefold()
    words = WORD.findall(THOUSANDS.sub("", plain.translate(OPERATORS)))
    return [ANY_NUMBER if NUMBER.match(word) else word for word in words] if mask_numbers else words


@lru_cache(2**16)
def _without_accents(char: str) -> str:
    """A character's plain ones; one by one, because thousands of accents in a row are sorted in quadratic time."""
    return "".join(part for part in unicodedata.normalize("NFKD", char) if not unicodedata.combining(part))


def digest_of(words: Sequence[str]) -> str:
    """32 hexadecimal digits that stand for a sequence of words."""
    return hashlib.blake2b("\x1f".join(words).encode(), digest_size=16).hexdigest()


def ngrams(words: Sequence[str], n: int) -> Iterator[tuple[str, ...]]:
    """Every run of n words; none if there are fewer."""
    return (tuple(words[i : i + n]) for i in range(len(words) - n + 1))
