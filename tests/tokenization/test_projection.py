"""The projection of a vocabulary into another, on the embedded pair and on real tokenizers."""

from __future__ import annotations

import numpy as np
import pytest

from simct_pl.errors import RecipeError
from simct_pl.losses.xtoken import best_matches
from simct_pl.tokenization.bytes import TokenBytes
from simct_pl.tokenization.pair import TokenizerPair
from simct_pl.tokenization.projection import TokenProjection, spell_inside
from simct_pl.tokenization.shared_vocab import SharedVocab
from tests.tiny import ASSETS
from tests.tokenization.real import real_tokenizer

NO_LIKES = np.empty(0, np.int64)


@pytest.fixture(scope="module")
def pair() -> TokenizerPair:
    return TokenizerPair.from_pretrained(str(ASSETS / "student"), str(ASSETS / "teacher"))


def row(projection: TokenProjection, pair: TokenizerPair, token: bytes) -> dict[bytes, float]:
    """Where a student token goes, by bytes."""
    source = pair.student.table.tokens.index(token)
    mine = projection.source_E == source
    targets = [pair.teacher.table[int(target)] for target in projection.target_E[mine]]
    return dict(zip(targets, projection.weight_E[mine].tolist(), strict=True))


def test_tokens_go_to_their_like_or_to_their_pieces(pair: TokenizerPair) -> None:
    projection = TokenProjection.of_pair(pair, 1.0)
    assert row(projection, pair, b"7") == {b"7": 1.0}
    assert row(projection, pair, b" 7") == {b" ": 0.5, b"7": 0.5}
    assert row(projection, pair, b"tal") == pytest.approx({b"t": 1 / 3, b"a": 1 / 3, b"l": 1 / 3})
    assert row(TokenProjection.of_pair(pair, 0.5), pair, b" 7") == pytest.approx({b" ": 2 / 3, b"7": 1 / 3})


def test_every_row_adds_up_to_one_and_stops_go_to_the_stop(pair: TokenizerPair) -> None:
    projection = TokenProjection.of_pair(pair, 0.7)
    sums = np.bincount(projection.source_E, projection.weight_E)
    np.testing.assert_allclose(sums[sums > 0], 1.0)
    (stop,) = pair.student.stop_ids
    assert projection.target_E[projection.source_E == stop].tolist() == [pair.teacher.stop_ids[0]]
    assert projection.num_unmapped == 0  # the teacher holds all bytes, and parts of characters are single bytes here


def test_control_tokens_go_nowhere(pair: TokenizerPair) -> None:
    projection = TokenProjection.of_pair(pair, 1.0)
    control = set(np.flatnonzero(pair.student.table.is_special_V).tolist()) - set(pair.student.stop_ids)
    assert control
    assert not control & set(projection.source_E.tolist())


def test_pieces_of_one_kind_count_as_often_as_they_are_there() -> None:
    found = TokenProjection._of_pieces({5: [2, 0, 2]}, 1.0, NO_LIKES, 0)
    assert found.target_E.tolist() == [0, 2]
    np.testing.assert_allclose(found.weight_E, [1 / 3, 2 / 3])


def test_matches_are_one_to_one_and_the_most_wanted_first() -> None:
    pieces = {0: [4], 1: [4, 4, 3], 2: [3, 3, 3, 1], 3: [9, 8]}
    projection = TokenProjection._of_pieces(pieces, 1.0, NO_LIKES, 0)
    student, teacher = best_matches(projection, 0.6)
    assert list(zip(student.tolist(), teacher.tolist(), strict=True)) == [(2, 3), (0, 4)]
    assert best_matches(projection, 0.5)[0].tolist() == [2, 0, 3]


def test_a_like_is_matched_before_its_twins() -> None:
    """A byte fallback and a further stop have lower ids than what they stand beside, as in Gemma's and Qwen's
    vocabularies; they must not take the match.
    """
    fallback_a, end_of_text, end_of_turn, letter_a, word = range(5)
    student = TokenBytes.from_list([b"a", None, None, b"a", b"aa"], [end_of_text, end_of_turn], [fallback_a])
    teacher = TokenBytes.from_list([b"a", None], [1])
    shared = SharedVocab.build(student, teacher, (end_of_turn, end_of_text), (1,))
    projection = TokenProjection.build(shared, lambda texts: [[0] * len(text) for text in texts], 1.0)
    assert projection.source_E.tolist() == [fallback_a, end_of_text, end_of_turn, letter_a, word]
    student_ids, teacher_ids = best_matches(projection, 0.6)
    assert list(zip(student_ids.tolist(), teacher_ids.tolist(), strict=True)) == [(letter_a, 0), (end_of_turn, 1)]


def test_a_dummy_space_is_left_out_inside_a_text() -> None:
    mistral = real_tokenizer("mistral")
    assert mistral.table.dummy_prefix
    (ids,) = spell_inside(mistral, ["the"])
    assert mistral.table.join(ids) == b"the"


@pytest.mark.parametrize("decay", [0.0, -1.0, 1.5])
def test_a_decay_outside_its_range_is_refused(pair: TokenizerPair, decay: float) -> None:
    with pytest.raises(RecipeError, match="decay is"):
        TokenProjection.of_pair(pair, decay)
