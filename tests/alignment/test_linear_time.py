"""Eight times the text takes about eight times as long, whatever the text: repetitive, rewritten or broken.

Quadratic work would take 64 times as long; the bound lies between the two, far from what a busy machine adds.
"""

from __future__ import annotations

import time
import unicodedata
from collections.abc import Callable

import pytest

from simct_pl.alignment import CommonBoundaryAligner
from simct_pl.tokenization.pair import TokenizedPair, readable_text
from tests.alignment.brute_force import cut, pair_of

FACTOR, BOUND = 8, 24


def _growth(make: Callable[[int], object], run: Callable[[object], object], size: int) -> float:
    """How many times as long the run takes on FACTOR times the size; the best of three."""
    seconds = []
    for scale in (1, FACTOR):
        argument, times = make(scale * size), []
        for _ in range(3):
            start = time.process_time()
            run(argument)
            times.append(time.process_time() - start)
        seconds.append(min(times))
    return seconds[1] / seconds[0]


def _pair(text: bytes, read: bytes) -> TokenizedPair:
    """A student that cuts the text every third byte and a teacher that reads something else, cut every fifth."""
    student, teacher = cut(text, range(3, len(text), 3)), cut(read, range(5, len(read), 5))
    return pair_of(student, teacher, text)


def _repetitive(size: int) -> TokenizedPair:
    return _pair(b"ha" * size, b"ha" * size)


def _letters_dropped(size: int) -> TokenizedPair:
    """Every hundredth letter is missing from a text in which each place looks like each other."""
    return _pair(b"ha" * size, (b"ha" * 49 + b"h") * (size // 50))


def _longer_by_a_tenth(size: int) -> TokenizedPair:
    return _pair(b"a" * size, b"a" * (size + size // 10))


def _nothing_in_common(size: int) -> TokenizedPair:
    return _pair(b"abc" * size, b"abd" * size)


def _decomposed(size: int) -> TokenizedPair:
    """Nearly every word is rewritten."""
    text = ("Tiếng Việt là ngôn ngữ của người Việt. " * size)[:size]
    return _pair(text.encode(), unicodedata.normalize("NFD", text).encode())


SCENES = [_repetitive, _letters_dropped, _longer_by_a_tenth, _nothing_in_common, _decomposed]


@pytest.mark.parametrize("make", SCENES)
def test_alignment(make: Callable[[int], TokenizedPair]) -> None:
    assert _growth(make, CommonBoundaryAligner().align, 4000) < BOUND


def test_reading_broken_characters() -> None:
    assert _growth(lambda size: b"a\xff" * size, readable_text, 30_000) < BOUND
