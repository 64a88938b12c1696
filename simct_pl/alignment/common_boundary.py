"""SimCT's minimal units: stretches between consecutive byte offsets at which both models' tokens end (paper, §3).

In the ordinary case each side's bytes are the text, and a unit boundary is an intersection of two sets of offsets.
Where a side's bytes differ, only the matching segments are cut into units; all else is lost, with a reason. Segments
are cut all at once, so that a text full of differences costs little more than a plain one.
"""

from __future__ import annotations

from typing import NamedTuple

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


class _Segment(NamedTuple):
    """A stretch where both sides' bytes are the text's: where it starts in each of the three, and its length."""

    student_start: int
    teacher_start: int
    text_start: int
    length: int


def minimal_units(pair: TokenizedPair) -> np.ndarray:
    """The content units that hold no faulty token, int64 [U, 6]."""
    # A faulty token without bytes ends where the token before it does, and would pass for a cut: it is left out of the
    # counting here, and comes back into the positions below.
    student_tokens, teacher_tokens = _spelling_tokens(pair.student), _spelling_tokens(pair.teacher)
    ends = pair.student.ends_N[student_tokens], pair.teacher.ends_N[teacher_tokens]
    # Nearly every response: both sides spell the text to the byte, so their token ends are offsets into one string.
    if pair.student.data == pair.text == pair.teacher.data and not any(map(_has_empty_token, ends)):
        units_U6 = _plain_units(*ends)
    else:
        # A side has rewritten something: cut only within the stretches where its bytes are still the text's.
        blocks = (matching_blocks(side.data, pair.text) for side in (pair.student, pair.teacher))
        units_U6 = _segment_units(*ends, _segments(*blocks))
    # From counts of spelling tokens back to positions among all tokens; then units that hold a faulty token go. Its
    # prefix sum tells: equal at both ends of a unit, there is no fault in between.
    for side, tokens, start, end in (
        (pair.student, student_tokens, STUDENT_START, STUDENT_END),
        (pair.teacher, teacher_tokens, TEACHER_START, TEACHER_END),
    ):
        if isinstance(tokens, np.ndarray):
            units_U6[:, start], units_U6[:, end] = tokens[units_U6[:, start]], tokens[units_U6[:, end] - 1] + 1
            faulty = np.concatenate([[0], np.cumsum(side.faults_N != 0)])
            units_U6 = units_U6[faulty[units_U6[:, end]] == faulty[units_U6[:, start]]]
    return units_U6


def _spelling_tokens(side: SideTokens) -> np.ndarray | slice:
    """Which tokens can be part of a unit: all but the faulty ones without bytes (positions, or all of a slice)."""
    if not side.faults_N.any():
        return slice(None)
    return np.flatnonzero((side.faults_N == 0) | (np.diff(side.ends_N, prepend=0) > 0))


def _segments(student_blocks: list[Block], teacher_blocks: list[Block]) -> list[_Segment]:
    """Wherever both sides match the text, in order."""
    found, i, j = [], 0, 0
    # Both lists are in order: walk them side by side, and go on in the one whose block ends first.
    while i < len(student_blocks) and j < len(teacher_blocks):
        student, teacher = student_blocks[i], teacher_blocks[j]
        student_end, teacher_end = student.text_start + student.length, teacher.text_start + teacher.length
        start, end = max(student.text_start, teacher.text_start), min(student_end, teacher_end)
        # Within a block, offsets of the text and of the side's own bytes differ by a constant.
        if start < end:
            student_start = student.own_start + start - student.text_start
            teacher_start = teacher.own_start + start - teacher.text_start
            found.append(_Segment(student_start, teacher_start, start, end - start))
        i, j = (i + 1, j) if student_end < teacher_end else (i, j + 1)
    return found


def _has_empty_token(ends_N: np.ndarray) -> bool:
    """Whether any token but the first (a dummy prefix by itself) has no bytes."""
    return bool((ends_N[1:] == ends_N[:-1]).any())


def _plain_units(student_ends: np.ndarray, teacher_ends: np.ndarray) -> np.ndarray:
    """Units of two sides that both spell the whole text without empty tokens, int64 [U, 6]."""
    if not len(student_ends) or not len(teacher_ends) or not student_ends[-1]:  # at most a dummy prefix by itself
        return np.empty((0, 6), np.int64)
    # A unit ends where a token of either side ends. Both sides find the same offsets in the same order, so the k-th of
    # these student tokens and the k-th of these teacher tokens close the same unit.
    student_C = np.flatnonzero(_marks(teacher_ends).take(student_ends))
    teacher_C = np.flatnonzero(_marks(student_ends).take(teacher_ends))
    units_U6 = np.empty((len(student_C), 6), np.int64)
    # A unit begins where the one before it has ended; the first one at 0.
    for place, end_C in ((0, student_C + 1), (2, teacher_C + 1), (4, student_ends.take(student_C))):
        units_U6[0, place], units_U6[1:, place], units_U6[:, place + 1] = 0, end_C[:-1], end_C
    return units_U6


def _marks(ends_N: np.ndarray) -> np.ndarray:
    """Whether a token ends at a byte offset, bool [bytes + 1]; not at 0, which ends no unit."""
    ends_here = np.zeros(ends_N[-1] + 1, bool)
    ends_here[ends_N] = True
    ends_here[0] = False
    return ends_here


def _segment_units(student_ends: np.ndarray, teacher_ends: np.ndarray, segments: list[_Segment]) -> np.ndarray:
    """Units within segments, int64 [U, 6]; student_ends, teacher_ends: where each token ends in its side's own bytes.

    The segments lie one after another on an axis (A), each with a place for both of its ends.
    """
    if not segments:
        return np.empty((0, 6), np.int64)
    student_starts, teacher_starts, text_starts, lengths = zip(*segments, strict=True)
    student_A = _lay_out(_tokens_before(student_ends), student_starts, lengths)
    teacher_A = _lay_out(_tokens_before(teacher_ends), teacher_starts, lengths)
    text_A = _lay_out(np.arange(text_starts[-1] + lengths[-1] + 1), text_starts, lengths)
    # -1 is the inside of a token: a cut is where neither side is inside one.
    cuts = np.flatnonzero((student_A >= 0) & (teacher_A >= 0))
    # Two neighbouring cuts bound a unit, on all three axes.
    units_U32 = np.empty((max(len(cuts) - 1, 0), 3, 2), np.int64)
    for place, axis_A in enumerate((student_A, teacher_A, text_A)):
        values_C = axis_A[cuts]
        units_U32[:, place, 0], units_U32[:, place, 1] = values_C[:-1], values_C[1:]
    units_U6 = units_U32.reshape(-1, 6)
    if len(segments) == 1:
        return units_U6
    # But the last cut of a segment and the first of the next bound text that somebody has rewritten. A segment of n
    # bytes has n + 1 offsets on the axis.
    segment_C = np.repeat(np.arange(len(segments)), np.array(lengths) + 1)[cuts]
    return units_U6[segment_C[:-1] == segment_C[1:]]


def _tokens_before(ends_N: np.ndarray) -> np.ndarray:
    """How many tokens end by each of a side's own offsets, int32 [bytes + 1]; -1 inside a token.

    A token without bytes (a dummy prefix by itself) goes with the unit in front of it, at the very start with the first
    unit.
    """
    before = np.full(ends_N[-1] + 1 if len(ends_N) else 1, -1, np.int32)
    before[ends_N] = np.arange(1, len(ends_N) + 1, dtype=np.int32)  # of equal offsets, the last one counts
    before[0] = 0
    return before


def _lay_out(values: np.ndarray, starts: tuple[int, ...], lengths: tuple[int, ...]) -> np.ndarray:
    """The values at the offsets of each segment, its end included, one segment after another."""
    pieces = [values[start : start + length + 1] for start, length in zip(starts, lengths, strict=True)]
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
