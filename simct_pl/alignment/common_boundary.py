"""SimCT's minimal units: stretches between consecutive byte offsets at which both models' tokens end (paper, §3).

In the ordinary case each side's bytes are the text, and a unit boundary is an intersection of two sets of offsets.
Where a side's bytes differ, only the matching stretches are cut into units; all else is lost, with a reason.
"""

from __future__ import annotations

import numpy as np

from simct_pl.alignment.base import Aligner, build_alignment, find_lost
from simct_pl.tokenization.pair import SideTokens, TokenizedPair
from simct_pl.tokenization.resync import Block, matching_blocks
from simct_pl.types import STUDENT_END, STUDENT_START, TEACHER_END, TEACHER_START, UnitAlignment


class CommonBoundaryAligner(Aligner):
    """Minimal aligned units by bytes: 1:1, 1:n, n:1 and n:m, none of which can be cut further."""

    def align(self, pair: TokenizedPair) -> UnitAlignment:
        units_U6 = minimal_units(pair)
        return build_alignment(pair, units_U6, find_lost(pair, units_U6))


def minimal_units(pair: TokenizedPair) -> np.ndarray:
    """The content units that hold no faulty token, int64 [U, 6]."""
    student_tokens, teacher_tokens = _spelling_tokens(pair.student), _spelling_tokens(pair.teacher)
    student_ends, teacher_ends = pair.student.ends_N[student_tokens], pair.teacher.ends_N[teacher_tokens]
    parts = [
        _segment_units(student_ends, teacher_ends, student_block, teacher_block, start, end)
        for student_block, teacher_block, start, end in _overlaps(
            matching_blocks(pair.student.data, pair.text), matching_blocks(pair.teacher.data, pair.text)
        )
    ]
    units_U6 = np.concatenate([np.empty((0, 6), np.int64), *parts])
    for side, tokens, start, end in (
        (pair.student, student_tokens, STUDENT_START, STUDENT_END),
        (pair.teacher, teacher_tokens, TEACHER_START, TEACHER_END),
    ):
        if side.faults_N.any():
            units_U6[:, start], units_U6[:, end] = tokens[units_U6[:, start]], tokens[units_U6[:, end] - 1] + 1
            faulty = np.concatenate([[0], np.cumsum(side.faults_N != 0)])
            units_U6 = units_U6[faulty[units_U6[:, end]] == faulty[units_U6[:, start]]]
    return units_U6


def _spelling_tokens(side: SideTokens) -> np.ndarray:
    """Positions of the tokens that can be part of a unit: all but the faulty ones without bytes."""
    return np.flatnonzero((side.faults_N == 0) | (np.diff(side.ends_N, prepend=0) > 0))


def _overlaps(student_blocks: list[Block], teacher_blocks: list[Block]) -> list[tuple[Block, Block, int, int]]:
    """(student block, teacher block, text start, text end) wherever both sides match the text."""
    found, i, j = [], 0, 0
    while i < len(student_blocks) and j < len(teacher_blocks):
        student, teacher = student_blocks[i], teacher_blocks[j]
        student_end, teacher_end = student.text_start + student.length, teacher.text_start + teacher.length
        start, end = max(student.text_start, teacher.text_start), min(student_end, teacher_end)
        if start < end:
            found.append((student, teacher, start, end))
        i, j = (i + 1, j) if student_end < teacher_end else (i, j + 1)
    return found


def _segment_units(
    student_ends: np.ndarray, teacher_ends: np.ndarray, student: Block, teacher: Block, start: int, end: int
) -> np.ndarray:
    """Units within text[start:end], where both sides' bytes are the text's.

    student_ends, teacher_ends: where each token ends in its side's own bytes.
    """
    # From offsets of the text to a side's own.
    student_shift, teacher_shift = student.own_start - student.text_start, teacher.own_start - teacher.text_start
    is_common = _boundaries(student_ends, start + student_shift, end + student_shift)
    is_common &= _boundaries(teacher_ends, start + teacher_shift, end + teacher_shift)
    common = np.flatnonzero(is_common) + start
    cuts_C3 = np.stack(
        [
            _tokens_before(student_ends, common + student_shift),
            _tokens_before(teacher_ends, common + teacher_shift),
            common,
        ],
        axis=1,
    )
    return np.stack([cuts_C3[:-1], cuts_C3[1:]], axis=2).reshape(-1, 6)


def _boundaries(ends_N: np.ndarray, start: int, end: int) -> np.ndarray:
    """Which of a side's own offsets start..end lie between two tokens, bool [end - start + 1]."""
    is_boundary = np.zeros(end - start + 1, bool)
    first, last = np.searchsorted(ends_N, [start, end + 1])
    is_boundary[ends_N[first:last] - start] = True
    if start == 0:
        is_boundary[0] = True
    return is_boundary


def _tokens_before(ends_N: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """How many tokens end by each of a side's own offsets.

    A token without bytes (a dummy prefix by itself) goes with the unit in front of it, at the very start with the first
    unit.
    """
    return np.where(offsets == 0, 0, np.searchsorted(ends_N, offsets, "right"))
