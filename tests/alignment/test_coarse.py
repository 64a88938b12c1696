"""Coarse baselines: unions of SimCT's own units, by rules that are written out here unit by unit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simct_pl.alignment import (
    Aligner,
    CommonBoundaryAligner,
    FixedMergeAligner,
    MaskedSpansAligner,
    OneToOneAligner,
    RandomMergeAligner,
    WordAligner,
    check_invariants,
)
from simct_pl.errors import RecipeError
from tests.alignment.brute_force import cut, pair_of
from tests.alignment.test_common_boundary import CUTS, TEXTS

MERGING = [WordAligner(), FixedMergeAligner(3), RandomMergeAligner(0.5)]
# A lost stretch in the middle: the teacher's normaliser took an accent off.
LOSSY = pair_of([b"ha", b"ppy", "é".encode(), b" and", b" so", b" on"], [b"hap", b"py", b"e", b" and", b" so", b" on"])


def texts_of(aligner: Aligner, *sides: list[bytes]) -> list[bytes]:
    pair = pair_of(*sides)
    return [pair.text[start:end] for start, end in aligner.align(pair).units_U6[:, 4:].tolist()]


@pytest.mark.parametrize("aligner", MERGING)
@given(text=TEXTS, student=CUTS, teacher=CUTS)
def test_merged_units_are_unions_of_minimal_ones_and_leave_nothing_out(
    aligner: Aligner, text: bytes, student: list[int], teacher: list[int]
) -> None:
    pair = pair_of(cut(text, student), cut(text, teacher), stop=True)
    coarse, minimal = aligner.align(pair), CommonBoundaryAligner().align(pair)
    check_invariants(coarse, pair, minimal=False)
    assert coarse.lost == minimal.lost
    for column in range(6):
        assert set(coarse.units_U6[:, column].tolist()) <= set(minimal.units_U6[:, column].tolist())


@pytest.mark.parametrize("aligner", [*MERGING, FixedMergeAligner(99), RandomMergeAligner(1.0)])
def test_no_merge_crosses_a_lost_stretch(aligner: Aligner) -> None:
    alignment = aligner.align(LOSSY)
    check_invariants(alignment, LOSSY, minimal=False)
    assert [0, 2, 0, 2, 0, 5] in alignment.units_U6.tolist()


def test_a_first_unit_that_cannot_be_graded_is_merged_with_nothing() -> None:
    """Only one side's first token carries a dummy space."""
    pieces = [b"a", b"b", b"c", b"d"]
    pair = pair_of(pieces, pieces)
    one_sided = replace(pair, student=replace(pair.student, stripped=True))
    alignment = RandomMergeAligner(1.0).align(one_sided)
    assert alignment.units_U6[:, :2].tolist() == [[0, 1], [1, 4]]
    assert alignment.supervised_U.tolist() == [False, True]
    assert FixedMergeAligner(1).align(one_sided).supervised_U.tolist() == [False, True, True, True]


def test_words_begin_with_their_whitespace_in_any_script() -> None:
    sides = (
        [b"I", b" li", b"ke", "　日".encode(), "本".encode(), b"\n\n", b"ok"],
        [b"I", b" like", "　日本".encode(), b"\n\nok"],
    )
    assert texts_of(WordAligner(), *sides) == [b"I", b" like", "　日本".encode(), b"\n\nok"]
    assert texts_of(WordAligner(), [b"a b", b" c"], [b"a b", b" c"]) == [b"a b", b" c"]


def test_words_survive_text_that_is_no_utf8() -> None:
    assert texts_of(WordAligner(), [b"\xff", b"\xe6\x97", b" a"], [b"\xff\xe6", b"\x97", b" a"])[-1] == b" a"


def test_every_m_units_become_one_and_the_stop_stays_alone() -> None:
    pieces = [bytes([c]) for c in b"abcdefg"]
    assert texts_of(FixedMergeAligner(3), pieces, pieces) == [b"abc", b"def", b"g"]
    stopped = FixedMergeAligner(3).align(pair_of(pieces, pieces, stop=True))
    assert stopped.units_U6[-1].tolist() == [7, 8, 7, 8, 7, 7]
    assert texts_of(FixedMergeAligner(1), pieces, pieces) == pieces


def test_random_merges_take_their_share_and_depend_on_nothing_but_text_and_seed() -> None:
    rng = np.random.default_rng(0)
    pieces = [bytes([c]) for c in rng.integers(97, 123, 4000)]
    pair = pair_of(pieces, pieces)
    units = RandomMergeAligner(0.3).align(pair).units_U6
    assert abs(len(units) / 4000 - 0.7) < 0.03
    assert np.array_equal(units, RandomMergeAligner(0.3).align(pair).units_U6)
    assert not np.array_equal(units, RandomMergeAligner(0.3, seed=1).align(pair).units_U6)
    assert len(RandomMergeAligner(1.0).align(pair).units_U6) == 1
    assert len(RandomMergeAligner(0.0).align(pair).units_U6) == 4000


@given(share=st.floats(0, 1), text=TEXTS, student=CUTS, teacher=CUTS)
def test_masking_touches_spans_only_and_keeps_them_aligned(
    share: float, text: bytes, student: list[int], teacher: list[int]
) -> None:
    pair = pair_of(cut(text, student), cut(text, teacher), stop=True)
    masked, minimal = MaskedSpansAligner(share).align(pair), CommonBoundaryAligner().align(pair)
    assert np.array_equal(masked.units_U6, minimal.units_U6)
    exact = {tuple(row) for row in OneToOneAligner().align(pair).units_U6.tolist()}
    for row, graded in zip(masked.units_U6.tolist(), masked.supervised_U.tolist(), strict=True):
        assert graded or tuple(row) not in exact or share == 0
    if share == 1:
        assert {tuple(row) for row in masked.units_U6[masked.supervised_U].tolist()} == exact


@pytest.mark.parametrize("build", [lambda: RandomMergeAligner(1.5), lambda: MaskedSpansAligner(-0.1)])
def test_a_share_outside_its_range_is_refused(build) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(RecipeError, match=r"share in \[0, 1\]"):
        build()


def test_m_below_one_is_refused() -> None:
    with pytest.raises(RecipeError, match="m is 0"):
        FixedMergeAligner(0)
