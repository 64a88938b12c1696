"""Parity with the greedy scan of the released code, written out here token by token."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simct_pl.alignment import AnchorMergedAligner, check_invariants
from tests.alignment.brute_force import cut, pair_of
from tests.alignment.test_common_boundary import CUTS


def greedy(student: list[bytes], teacher: list[bytes]) -> list[list[int]]:
    """Walk both sides; the one whose text is shorter steps on. Equal texts and equal next tokens make an anchor."""
    anchors, i, j, read_student, read_teacher = [], 0, 0, b"", b""
    while i < len(student) and j < len(teacher):
        behind = len(read_student) - len(read_teacher)
        if behind == 0 and student[i] == teacher[j]:
            anchors.append((i, j))
        if behind <= 0:
            read_student, i = read_student + student[i], i + 1
        if behind >= 0:
            read_teacher, j = read_teacher + teacher[j], j + 1
    starts = [(0, 0), *((i + 1, j + 1) for i, j in anchors)]
    return [[i0, i + 1, j0, j + 1] for (i0, j0), (i, j) in zip(starts, anchors, strict=False)]


@given(text=st.text("abc ", max_size=20).map(str.encode), student=CUTS, teacher=CUTS)
def test_it_is_the_greedy_scan(text: bytes, student: list[int], teacher: list[int]) -> None:
    pieces = cut(text, student), cut(text, teacher)
    pair = pair_of(*pieces)
    alignment = AnchorMergedAligner().align(pair)
    check_invariants(alignment, pair, minimal=False, complete=False)
    assert alignment.units_U6[:, :4].tolist() == greedy(*pieces)


@pytest.mark.parametrize("stop", [False, True])
def test_a_trailing_mismatch_is_dropped_and_the_stop_stays_alone(stop: bool) -> None:
    pair = pair_of([b"a", b"ha", b"ppy"], [b"a", b"hap", b"py"], stop=stop)
    alignment = AnchorMergedAligner().align(pair)
    check_invariants(alignment, pair, minimal=False, complete=False)
    assert alignment.units_U6.tolist() == [[0, 1, 0, 1, 0, 1], *([[3, 4, 3, 4, 6, 6]] if stop else [])]


def test_a_mismatch_joins_the_next_anchor() -> None:
    alignment = AnchorMergedAligner().align(pair_of([b"ha", b"ppy", b"!", b"?"], [b"hap", b"py", b"!", b"?"]))
    assert alignment.units_U6.tolist() == [[0, 3, 0, 3, 0, 6], [3, 4, 3, 4, 6, 7]]


def test_a_mismatch_does_not_join_an_anchor_behind_a_lost_stretch() -> None:
    student = [b"ha", b"ppy", "é".encode(), b" and", b" so", b" on", b" then"]
    teacher = [b"hap", b"py", b"e", b" and", b" so", b" on", b" then"]
    alignment = AnchorMergedAligner().align(pair_of(student, teacher))
    assert alignment.units_U6[:, :2].tolist() == [[3, 4], [4, 5], [5, 6], [6, 7]]
