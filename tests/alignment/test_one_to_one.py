"""The `exact` baseline keeps the 1:1 units of SimCT's own partition."""

from __future__ import annotations

from hypothesis import given

from simct_pl.alignment import CommonBoundaryAligner, OneToOneAligner, check_invariants
from tests.alignment.brute_force import cut, pair_of
from tests.alignment.test_common_boundary import CUTS, TEXTS


@given(text=TEXTS, student=CUTS, teacher=CUTS)
def test_it_is_a_subset_of_the_minimal_units(text: bytes, student: list[int], teacher: list[int]) -> None:
    pair = pair_of(cut(text, student), cut(text, teacher), stop=True)
    exact = OneToOneAligner().align(pair)
    check_invariants(exact, pair, complete=False)
    minimal = CommonBoundaryAligner().align(pair).units_U6.tolist()
    assert exact.units_U6.tolist() == [row for row in minimal if row[1] - row[0] == row[3] - row[2] == 1]


def test_what_is_left_out_is_not_lost_but_lowers_coverage() -> None:
    alignment = OneToOneAligner().align(pair_of([b"ha", b"ppy", b"!"], [b"hap", b"py", b"!"]))
    assert alignment.units_U6.tolist() == [[2, 3, 2, 3, 5, 6]]
    assert alignment.lost == ()
    assert alignment.coverage == 1 / 3
