"""The invariants: each can be broken, and each break is named."""

from __future__ import annotations

import numpy as np
import pytest

from simct_pl.alignment import check_invariants
from simct_pl.errors import AlignmentError
from simct_pl.tokenization.pair import ADDED, TokenizedPair
from simct_pl.types import LostReason, LostSpan, UnitAlignment
from tests.alignment.brute_force import pair_of, side

PAIR = pair_of([b"a", b"b", b"cd"], [b"a", b"b", b"c", b"d"], stop=True)
GOOD = [[0, 1, 0, 1, 0, 1], [1, 2, 1, 2, 1, 2], [2, 3, 2, 4, 2, 4], [3, 4, 4, 5, 4, 4]]


def alignment_of(rows: list[list[int]], has_stop: bool = True, lost: tuple[LostSpan, ...] = ()) -> UnitAlignment:
    return UnitAlignment(
        np.array(rows, np.int64).reshape(-1, 6),
        PAIR.student.ids,
        PAIR.teacher.ids,
        PAIR.text,
        has_stop,
        np.ones(len(rows), bool),
        lost,
    )


def test_a_right_alignment_passes() -> None:
    check_invariants(alignment_of(GOOD), PAIR)


BROKEN = {
    "overlap": ([GOOD[0], [0, 2, 0, 2, 0, 2], *GOOD[2:]], "overlap"),
    "order": ([GOOD[1], GOOD[0], *GOOD[2:]], "out of order"),
    "gap": ([GOOD[0], *GOOD[2:]], "neither a unit nor a lost span"),
    "bytes": ([GOOD[0], [1, 2, 1, 2, 1, 3], [2, 3, 2, 4, 3, 4], GOOD[3]], "spell"),
    "backwards": ([[1, 0, 1, 0, 1, 0], *GOOD[1:]], "ends before it starts"),
    "empty side": ([GOOD[0], [1, 2, 1, 1, 1, 2], [2, 3, 1, 4, 2, 4], GOOD[3]], "has no teacher token"),
    "refinable": ([[0, 2, 0, 2, 0, 2], *GOOD[2:]], r"can be cut at bytes \[1\]"),
    "stop folded in": ([*GOOD[:2], [2, 4, 2, 5, 2, 4]], "not the stop alone"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_each_break_is_named(name: str) -> None:
    rows, message = BROKEN[name]
    with pytest.raises(AlignmentError, match=message):
        check_invariants(alignment_of(rows), PAIR)


def test_a_missing_stop_unit() -> None:
    lost = (LostSpan(LostReason.BYTE_MISMATCH, 3, 4, 4, 5, 4, 4),)
    with pytest.raises(AlignmentError, match="not the stop alone"):
        check_invariants(alignment_of(GOOD[:3], lost=lost), PAIR)


def test_lost_spans_fill_gaps() -> None:
    lost = (LostSpan(LostReason.NORMALIZER, 1, 2, 1, 2, 1, 2),)
    check_invariants(alignment_of([GOOD[0], *GOOD[2:]], lost=lost), PAIR)


def test_a_coarser_alignment_passes_when_minimality_is_not_asked_for() -> None:
    check_invariants(alignment_of([[0, 2, 0, 2, 0, 2], *GOOD[2:]]), PAIR, minimal=False)


def test_left_out_units_pass_when_completeness_is_not_asked_for() -> None:
    check_invariants(alignment_of([GOOD[0], *GOOD[2:]]), PAIR, complete=False)


def test_a_faulty_token_in_a_unit() -> None:
    marked = TokenizedPair(PAIR.text, side([b"a", b"b", b"cd"], {1: ADDED}, stop=True), PAIR.teacher, True)
    with pytest.raises(AlignmentError, match="unit 1 holds a student token that cannot be aligned"):
        check_invariants(alignment_of(GOOD), marked)
