"""Which row of the decision table a pair is in, by texts whose units were counted by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from simct_pl.alignment import CommonBoundaryAligner
from simct_pl.planning.samples import Sample
from simct_pl.preflight.units import DomainReport, domain_reports
from simct_pl.preflight.which_method import Pair, which_method
from simct_pl.tasks.tokenizers import STUDENT, TEACHER, TWO_DIGIT_TEACHER, TinyModel
from simct_pl.tokenization.model_tokenizer import ModelTokenizer
from simct_pl.tokenization.pair import TokenizerPair
from simct_pl.types import Prompt

METHODS = Path(__file__).parents[2] / "docs" / "methods.md"


def reports(student: TinyModel, teacher: TinyModel, text: str) -> list[DomainReport]:
    pair = TokenizerPair(ModelTokenizer(student.tokenizer()), ModelTokenizer(teacher.tokenizer()))
    return domain_reports(pair, CommonBoundaryAligner(), [Sample(Prompt(0, ({"role": "user", "content": text},)))])


def test_tokens_are_counted_on_the_side_that_has_more_of_them() -> None:
    # `138` is three tokens under two (13 8): one unit of two and one of one.
    (report,) = reports(TEACHER, TWO_DIGIT_TEACHER, "138+7")
    assert (report.finer, report.coarser, report.student_tokens) == (2, 0, 5)
    # ` 3` under ` ` and `3`; ` to` `tal` under ` ` and `total` is as long on both sides.
    (report,) = reports(STUDENT, TEACHER, "7= 38, total")
    assert (report.finer, report.coarser) == (0, 1)


@pytest.mark.parametrize(
    ("student", "teacher", "text", "expected"),
    [
        (TEACHER, TWO_DIGIT_TEACHER, "13+25= 38", Pair.FINER),
        (TWO_DIGIT_TEACHER, TEACHER, "13+25= 38", Pair.COARSER),
        (STUDENT, TEACHER, "13+25= 38", Pair.COARSER),
        (STUDENT, TEACHER, "13+25=38", Pair.ALIKE),
    ],
)
def test_a_pair_is_what_most_of_its_other_units_are(
    student: TinyModel, teacher: TinyModel, text: str, expected: Pair
) -> None:
    assert Pair.of(reports(student, teacher, text), same_tokenizer=False) is expected


def test_an_arrow_is_in_front_of_the_pairs_own_row() -> None:
    section = which_method(reports(TEACHER, TWO_DIGIT_TEACHER, "13+25= 38"), same_tokenizer=False)
    assert [row[0][0] for row in section.rows] == [" ", " ", "→", " "]
    assert which_method([], same_tokenizer=True).rows[0][0].startswith("→ one tokenizer")


def test_the_page_has_the_same_table() -> None:
    page = METHODS.read_text(encoding="utf-8")
    for pair in Pair:
        assert f"| {' | '.join(pair.value)} |" in page
