"""Bits that classes keep, against sums by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from simct_pl import TokenConditionalLoss
from simct_pl.losses.token_paths.vocab_links import VocabLinks
from simct_pl.preflight.classes import ClassBits, ClassesReport
from simct_pl.tokenization.model_tokenizer import ModelTokenizer
from simct_pl.tokenization.pair import TokenizerPair
from tests.tokenization.small import byte_level

LABELS = np.array([2, 2, 3, 4])


def h(*shares: float) -> float:
    return -sum(p * math.log2(p) for p in shares)


def test_bits_are_entropies_of_counts() -> None:
    bits = ClassBits.of([[0, 1, 2], [0, 1, 3]], LABELS)
    assert bits.num_tokens == 6
    assert bits.token == pytest.approx(h(1 / 3, 1 / 3, 1 / 6, 1 / 6))
    assert bits.kept == pytest.approx(h(2 / 3, 1 / 6, 1 / 6))
    # Behind 0 always 1; behind 1 one of two.
    assert bits.token_after == pytest.approx(0.5)
    assert bits.kept_after == pytest.approx(0.5)
    (worst,) = bits.worst
    assert worst.ids == (0, 1)
    assert worst.bits == pytest.approx(bits.token - bits.kept)


def test_what_follows_a_token_may_tell_less_than_the_token() -> None:
    bits = ClassBits.of([[3, 0], [3, 1]], LABELS)
    assert bits.token_after == pytest.approx(1.0)
    assert bits.kept_after == pytest.approx(0.0)


def test_no_texts_have_no_bits() -> None:
    bits = ClassBits.of([], LABELS)
    assert (bits.num_tokens, bits.token, bits.kept_after, bits.worst) == (0, 0.0, 0.0, ())


def test_a_report_shows_the_tokens_that_are_not_told_apart() -> None:
    """The teacher reads `hello` and `help` as `hel` and more: one class, but for its own tokens."""
    student = ModelTokenizer(byte_level(("hello", "help")), name="student")
    teacher = ModelTokenizer(byte_level(("hel",)), name="teacher")
    pair = TokenizerPair(student, teacher)
    objective = TokenConditionalLoss()
    objective.use(VocabLinks.of_pair(pair))
    assert objective.path_builder is not None
    report = ClassesReport.of(objective.path_builder.links, pair, ["hello help", "help hello"])
    assert report.student.token > report.student.kept
    (worst,) = report.worst[0]
    assert "'hello'" in worst
    assert "'help'" in worst
    cells = dict(report.section().rows)
    assert f"{report.student.kept:.2f} of {report.student.token:.2f} | " in cells["your texts, bits a token kept"]
    assert report.as_json()["student_bits"]["num_tokens"] == report.student.num_tokens
