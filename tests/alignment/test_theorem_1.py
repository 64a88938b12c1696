"""Theorem 1 (arXiv 2605.07711): of all partitions that both models can spell, the minimal units are the finest.

Exhaustive: every cut of a text into student tokens, every cut into teacher tokens, every partition of the text.
"Can spell" is tried token by token, and knows nothing of common boundaries.
"""

from __future__ import annotations

import itertools

import pytest

from simct_pl.alignment import CommonBoundaryAligner
from tests.alignment.brute_force import cut, pair_of


def spells(pieces: list[bytes], partition: list[bytes]) -> bool:
    """Whether whole tokens, in order, make up each part of a partition."""
    tokens = iter(pieces)
    for part in partition:
        built = b""
        while len(built) < len(part):
            built += next(tokens)
        if built != part:
            return False
    return True


@pytest.mark.parametrize("text", [b"happy", "é😀".encode()[:5]])
def test_no_finer_partition_can_be_spelt_by_both(text: bytes) -> None:
    places = range(1, len(text))
    cuts = [list(chosen) for size in range(len(text)) for chosen in itertools.combinations(places, size)]
    num_expressible = 0
    for student, teacher in itertools.product(cuts, cuts):
        pieces = cut(text, student), cut(text, teacher)
        units_U6 = CommonBoundaryAligner().align(pair_of(*pieces)).units_U6
        own = set(units_U6[:, 5].tolist()) - {len(text)}
        expressible = [set(chosen) for chosen in cuts if all(spells(side, cut(text, chosen)) for side in pieces)]
        assert own in expressible
        assert all(other <= own for other in expressible)
        num_expressible += len(expressible)
    assert num_expressible > len(cuts) ** 2
