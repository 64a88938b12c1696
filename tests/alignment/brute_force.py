"""Units from their definition, slowly: connected components of "lies in the same token of either side".

Independent of simct_pl: works on lists of byte strings.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from simct_pl.tokenization.pair import SideTokens, TokenizedPair

Row = tuple[int, int, int, int, int, int]


def components(student: Sequence[bytes], teacher: Sequence[bytes]) -> list[Row]:
    """Minimal units of two cuts of one text into non-empty pieces, as rows of units_U6."""
    owners = [[i for i, piece in enumerate(pieces) for _ in piece] for pieces in (student, teacher)]
    component = list(range(len(owners[0])))
    changed = True
    while changed:  # bytes of one token take the smallest label among them, until nothing moves
        changed = False
        for owner in owners:
            for token in set(owner):
                members = [byte for byte, held_by in enumerate(owner) if held_by == token]
                smallest = min(component[byte] for byte in members)
                for byte in members:
                    changed |= component[byte] != smallest
                    component[byte] = smallest
    rows = []
    for label in sorted(set(component)):
        members = [byte for byte, other in enumerate(component) if other == label]
        tokens = [sorted({owner[byte] for byte in members}) for owner in owners]
        rows.append((tokens[0][0], tokens[0][-1] + 1, tokens[1][0], tokens[1][-1] + 1, members[0], members[-1] + 1))
    return rows


def side(pieces: Sequence[bytes], faults: dict[int, int] | None = None, stop: bool = False, stripped: bool = False):
    """The project's value for a list of pieces; ids are positions, a stop is 999."""
    faults_N = np.zeros(len(pieces), np.int8)
    for token, fault in (faults or {}).items():
        faults_N[token] = fault
    ids = np.array([*range(len(pieces)), *([999] if stop else [])], np.int64)
    ends_N = np.cumsum([len(piece) for piece in pieces], dtype=np.int64)
    return SideTokens(ids, b"".join(pieces), ends_N, faults_N, stripped)


def pair_of(student: Sequence[bytes], teacher: Sequence[bytes], text: bytes | None = None, stop: bool = False):
    """A tokenized pair; the student's pieces are the text unless another is given."""
    text = b"".join(student) if text is None else text
    return TokenizedPair(text, side(student, stop=stop), side(teacher, stop=stop), stop)


def cut(text: bytes, places: Sequence[int]) -> list[bytes]:
    """Cut a text at some of its inner offsets."""
    edges = [0, *sorted({place for place in places if 0 < place < len(text)}), len(text)]
    return [text[start:end] for start, end in itertools.pairwise(edges)] if text else []
