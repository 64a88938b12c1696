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
    student_blocks = matching_blocks(pair.student.data, pair.text)
    teacher_blocks = matching_blocks(pair.teacher.data, pair.text)
    parts = [
        _segment_units(pair, student_block, teacher_block, start, end)
        for student_block, teacher_block, start, end in _overlaps(student_blocks, teacher_blocks)
    ]
    units_U6 = np.concatenate([np.empty((0, 6), np.int64), *parts])
    for side, start, end in (
        (pair.student, STUDENT_START, STUDENT_END),
        (pair.teacher, TEACHER_START, TEACHER_END),
    ):
        if side.faults_N.any():
            faulty = np.concatenate([[0], np.cumsum(side.faults_N != 0)])
            units_U6 = units_U6[faulty[units_U6[:, end]] == faulty[units_U6[:, start]]]
    return units_U6


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


def _segment_units(pair: TokenizedPair, student: Block, teacher: Block, start: int, end: int) -> np.ndarray:
    """Units within text[start:end], where both sides' bytes are the text's."""
    student_shift, teacher_shift = student.text_start - student.own_start, teacher.text_start - teacher.own_start
    common = np.flatnonzero(
        _boundaries(pair.student, start - student_shift, end - student_shift)
        & _boundaries(pair.teacher, start - teacher_shift, end - teacher_shift)
    )
    if len(common) < 2:
        return np.empty((0, 6), np.int64)
    cuts_C3 = np.stack(
        [
            _tokens_before(pair.student, common + start - student_shift),
            _tokens_before(pair.teacher, common + start - teacher_shift),
            common + start,
        ],
        axis=1,
    )
    units_U23 = np.stack([cuts_C3[:-1], cuts_C3[1:]], axis=2)
    return units_U23.reshape(-1, 6)


def _boundaries(side: SideTokens, start: int, end: int) -> np.ndarray:
    """Which of the side's own offsets start..end lie between two tokens, bool [end - start + 1]."""
    is_boundary = np.zeros(end - start + 1, bool)
    first, last = np.searchsorted(side.ends_N, [start, end + 1])
    is_boundary[side.ends_N[first:last] - start] = True
    if start == 0:
        is_boundary[0] = True
    return is_boundary


def _tokens_before(side: SideTokens, offsets: np.ndarray) -> np.ndarray:
    """How many tokens end by each of the side's own offsets.

    A token without bytes (a dummy prefix by itself) goes with the unit in front of it, at the very start with the
    first unit.
    """
    return np.where(offsets == 0, 0, np.searchsorted(side.ends_N, offsets, "right"))
