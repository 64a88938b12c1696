"""What every aligner shares: the interface, the lost stretches, and the invariants that any alignment must keep.

In: TokenizedPair. Out: UnitAlignment, whose units and lost spans tile both token sequences.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np

from simct_pl.errors import AlignmentError
from simct_pl.tokenization.pair import FAULT_REASONS, TokenizedPair
from simct_pl.types import (
    BYTE_END,
    BYTE_START,
    STUDENT_END,
    STUDENT_START,
    TEACHER_END,
    TEACHER_START,
    LostReason,
    LostSpan,
    UnitAlignment,
)

_STARTS, _ENDS = slice(STUDENT_START, None, 2), slice(STUDENT_END, None, 2)  # of the student, the teacher, the bytes


class Aligner(ABC):
    """Cuts one response into units that both models' tokens spell."""

    @abstractmethod
    def align(self, pair: TokenizedPair) -> UnitAlignment:
        """The units of one response, the stop last and by itself."""


def build_alignment(pair: TokenizedPair, units_U6: np.ndarray, lost: tuple[LostSpan, ...]) -> UnitAlignment:
    """Add the stop unit and say which units can be supervised.

    units_U6: int64 [U, 6], content units only.
    """
    supervised_U = np.ones(len(units_U6) + pair.has_stop, bool)
    if pair.student.stripped != pair.teacher.stripped and len(units_U6):
        # One side's first token carries a dummy space, so the two models' columns at this place mean different bytes.
        supervised_U[0] = units_U6[0, BYTE_START] > 0
    # One token on each side, and no bytes: a stop is no text, but both models must learn when to say it.
    if pair.has_stop:
        student, teacher, end = pair.student.num_content, pair.teacher.num_content, len(pair.text)
        units_U6 = np.concatenate([units_U6, [[student, student + 1, teacher, teacher + 1, end, end]]])
    return UnitAlignment(units_U6, pair.student.ids, pair.teacher.ids, pair.text, pair.has_stop, supervised_U, lost)


def find_lost(pair: TokenizedPair, units_U6: np.ndarray) -> tuple[LostSpan, ...]:
    """The stretches between content units, each with its reason."""
    end_3 = [pair.student.num_content, pair.teacher.num_content, len(pair.text)]
    if end_3[0] == 0:
        return (LostSpan(LostReason.EMPTY_RESPONSE, 0, 0, 0, end_3[1], 0, end_3[2]),)
    # A gap may lie before the first unit, between two, and behind the last one. It is there if on any of the three axes
    # the next unit does not start where the one before has ended.
    starts_G3 = np.concatenate([np.zeros((1, 3), np.int64), units_U6[:, _ENDS]])
    ends_G3 = np.concatenate([units_U6[:, _STARTS], np.array([end_3], np.int64)])
    # By flat position: a reduction over rows of three would take longer than all else here.
    gaps = sorted(set((np.flatnonzero(starts_G3 != ends_G3) // 3).tolist()))
    return tuple(_lost_span(pair, starts_G3[gap].tolist(), ends_G3[gap].tolist()) for gap in gaps)


def _lost_span(pair: TokenizedPair, starts: list[int], ends: list[int]) -> LostSpan:
    reason = (
        LostReason.NORMALIZER
    )  # valid text that a tokenizer gave back as other bytes: its normaliser or its vocabulary did
    # The first fault in the stretch gives the reason, the student's before the teacher's.
    for side, start, end in zip((pair.student, pair.teacher), starts, ends, strict=False):
        faults = side.faults_N[start:end]
        if faults.any():
            reason = FAULT_REASONS[int(faults[faults != 0][0]) - 1]
            break
    return LostSpan(reason, starts[0], ends[0], starts[1], ends[1], starts[2], ends[2])


def check_invariants(
    alignment: UnitAlignment, pair: TokenizedPair, *, minimal: bool = True, complete: bool = True
) -> None:
    """Check what must hold for any response.

    minimal: no unit can be cut further. complete: units and lost spans leave no token out; False for aligners that
    leave out units on purpose (one_to_one, anchor_merged).

    Raises:
        AlignmentError: naming the unit and the broken invariant.
    """
    units_U6 = alignment.units_U6
    if len(units_U6) and (units_U6[:, _STARTS] > units_U6[:, _ENDS]).any():
        raise AlignmentError(
            f"unit {int((units_U6[:, _STARTS] > units_U6[:, _ENDS]).any(1).argmax())} ends before it starts"
        )
    if (units_U6[1:, _STARTS] < units_U6[:-1, _ENDS]).any():
        raise AlignmentError("units overlap or are out of order")
    content_U6 = units_U6[: len(units_U6) - alignment.has_stop]
    _check_order(alignment, complete)
    for unit, row in enumerate(content_U6.tolist()):
        _check_unit(pair, unit, row, minimal)
    if alignment.has_stop:
        _check_stop(alignment, pair)


def _check_order(alignment: UnitAlignment, complete: bool) -> None:
    # Units and lost spans, sorted together, must tile the tokens of both sides and the bytes: each starts where the one
    # before has ended, and None stands for the end of everything.
    spans = [tuple(row) for row in alignment.units_U6.tolist()]
    spans += [
        (lost.student_start, lost.student_end, lost.teacher_start, lost.teacher_end, lost.byte_start, lost.byte_end)
        for lost in alignment.lost
    ]
    spans.sort(key=lambda span: (span[STUDENT_START], span[TEACHER_START], span[BYTE_START], span[STUDENT_END]))
    ends = (0, 0, 0)
    for span in [*spans, None]:
        if span is None:
            starts = (alignment.num_student_tokens, alignment.num_teacher_tokens, len(alignment.text))
        else:
            starts = span[_STARTS]
        if any(start < end for start, end in zip(starts, ends, strict=True)):
            raise AlignmentError(f"a unit and a lost span overlap at (student, teacher, byte) {starts}")
        if complete and starts != ends:
            raise AlignmentError(f"neither a unit nor a lost span covers {ends} to {starts} (student, teacher, byte)")
        if span is not None:
            ends = span[_ENDS]


def _check_unit(pair: TokenizedPair, unit: int, row: list[int], minimal: bool) -> None:
    expected = pair.text[row[BYTE_START] : row[BYTE_END]]
    inner = []
    for name, side, start, end in (
        ("student", pair.student, row[STUDENT_START], row[STUDENT_END]),
        ("teacher", pair.teacher, row[TEACHER_START], row[TEACHER_END]),
    ):
        if start == end:
            raise AlignmentError(f"unit {unit} has no {name} token")
        first = int(side.ends_N[start - 1]) if start else 0
        spelled = side.data[first : int(side.ends_N[end - 1])]
        if spelled != expected:
            raise AlignmentError(f"the {name} tokens of unit {unit} spell {spelled!r}; the text there is {expected!r}")
        if side.faults_N[start:end].any():
            raise AlignmentError(f"unit {unit} holds a {name} token that cannot be aligned")
        # Byte offsets at which this side's tokens end inside the unit. One that both sides have would have been a cut.
        inner.append(set((side.ends_N[start : end - 1] - first).tolist()) - {0, len(expected)})
    if minimal and inner[0] & inner[1]:
        raise AlignmentError(f"unit {unit} ({expected!r}) can be cut at bytes {sorted(inner[0] & inner[1])}")


def _check_stop(alignment: UnitAlignment, pair: TokenizedPair) -> None:
    student, teacher, end = pair.student.num_content, pair.teacher.num_content, len(pair.text)
    stop = [student, student + 1, teacher, teacher + 1, end, end]
    if not alignment.num_units or alignment.units_U6[-1].tolist() != stop:
        raise AlignmentError(f"the last unit is not the stop alone; expected {stop}")
