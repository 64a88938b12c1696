"""Minimal units against brute force, and what is lost when the bytes differ."""

from __future__ import annotations

import dataclasses
import itertools
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import normalizers

from simct_pl.alignment import CommonBoundaryAligner, check_invariants
from simct_pl.tokenization.model_tokenizer import ModelTokenizer
from simct_pl.tokenization.pair import ADDED, TokenizedPair, TokenizerPair
from simct_pl.types import LostReason, UnitAlignment
from tests.alignment.brute_force import components, cut, pair_of, side
from tests.tokenization import small

ALIGNER = CommonBoundaryAligner()
TEXTS = st.text("ab é👍\n", max_size=12).map(str.encode)
CUTS = st.lists(st.integers(1, 40), max_size=20)
EMOJI = ["👍", "👨‍👩", "🇩🇪", "é"]


def align(pair: TokenizedPair) -> UnitAlignment:
    alignment = ALIGNER.align(pair)
    check_invariants(alignment, pair)
    return alignment


@given(text=TEXTS, student=CUTS, teacher=CUTS, stop=st.booleans())
def test_units_are_the_connected_components(text: bytes, student: list[int], teacher: list[int], stop: bool) -> None:
    pieces = cut(text, student), cut(text, teacher)
    alignment = align(pair_of(*pieces, stop=stop))
    expected = components(*pieces)
    if stop:
        sizes = [len(side) for side in pieces]
        expected.append((sizes[0], sizes[0] + 1, sizes[1], sizes[1] + 1, len(text), len(text)))
    assert [tuple(row) for row in alignment.units_U6.tolist()] == expected
    assert alignment.supervised_U.all()
    assert alignment.lost_counts == ({} if text else {LostReason.EMPTY_RESPONSE: 1})


@given(text=TEXTS, student=CUTS, teacher=CUTS)
def test_swapping_sides_swaps_the_result(text: bytes, student: list[int], teacher: list[int]) -> None:
    pieces = cut(text, student), cut(text, teacher)
    forward, backward = align(pair_of(*pieces)), align(pair_of(*reversed(pieces)))
    assert forward.units_U6[:, [2, 3, 0, 1, 4, 5]].tolist() == backward.units_U6.tolist()


@pytest.mark.parametrize("emoji", EMOJI)
def test_every_way_to_cut_an_emoji(emoji: str) -> None:
    """All cuts of both sides up to four bytes; beyond, all cuts of one side against cuts at each single place."""
    data = emoji.encode()
    ways = [[i + 1 for i in range(len(data) - 1) if mask >> i & 1] for mask in range(2 ** (len(data) - 1))]
    others = ways if len(data) <= 4 else [[], *([i] for i in range(1, len(data))), list(range(1, len(data)))]
    for student, teacher in itertools.product(ways, others):
        pieces = cut(data, student), cut(data, teacher)
        alignment = align(pair_of(*pieces))
        assert [tuple(row) for row in alignment.units_U6.tolist()] == components(*pieces)
        assert alignment.coverage == 1.0


@given(
    student=st.text("ab é👍", max_size=30).map(str.encode),
    teacher=st.text("ab é👍", max_size=30).map(str.encode),
    cuts=st.tuples(CUTS, CUTS),
    stop=st.booleans(),
)
def test_any_difference_still_tiles(
    student: bytes, teacher: bytes, cuts: tuple[list[int], list[int]], stop: bool
) -> None:
    """Whatever the teacher made of the text: units are equal bytes, and all else is in a lost span."""
    align(pair_of(cut(student, cuts[0]), cut(teacher, cuts[1]), stop=stop))


@given(
    pieces=st.lists(st.sampled_from([b"", b"a", b"bc", "é".encode()]), max_size=8),
    cuts=CUTS,
    faulty=st.sets(st.integers(0, 7)),
)
def test_empty_and_faulty_tokens_land_somewhere(pieces: list[bytes], cuts: list[int], faulty: set[int]) -> None:
    text = b"".join(pieces)
    faults = {token: ADDED for token in faulty if token < len(pieces)}
    pair = TokenizedPair(text, side(pieces, faults), side(cut(text, cuts)), False)
    alignment = align(pair)
    in_units = {token for row in alignment.units_U6.tolist() for token in range(row[0], row[1])}
    in_lost = {token for span in alignment.lost for token in range(span.student_start, span.student_end)}
    assert in_units | in_lost == set(range(len(pieces)))
    assert set(faults) <= in_lost
    if pieces and not faults and text:
        assert alignment.coverage == 1.0, "a token without bytes goes with a unit"


def test_example_of_the_paper() -> None:
    alignment = align(pair_of([b"ha", b"pp", b"y", b"!"], [b"hap", b"py", b"!"]))
    assert alignment.units_U6.tolist() == [[0, 3, 0, 2, 0, 5], [3, 4, 2, 3, 5, 6]]


def test_a_rewritten_character_costs_its_unit_and_no_more() -> None:
    words = [b"the", b" sum", b" is", b" ", "≈".encode(), b" 12", b" or", b" so", b" in", b" all", b" cases"]
    teacher = [word if word != "≈".encode() else b"~" for word in words]
    alignment = align(pair_of(words, teacher))
    (lost,) = alignment.lost
    assert lost.reason is LostReason.NORMALIZER
    assert (lost.student_start, lost.student_end, lost.teacher_start, lost.teacher_end) == (4, 5, 4, 5)
    assert alignment.num_units == len(words) - 1


def test_a_character_that_the_teacher_drops() -> None:
    alignment = align(pair_of([b"one", b"\x04", b" two three"], [b"one", b" two", b" three"]))
    assert alignment.units_U6[:, :4].tolist() == [[0, 1, 0, 1], [2, 3, 1, 3]]
    assert [
        (span.student_start, span.student_end, span.teacher_start, span.teacher_end) for span in alignment.lost
    ] == [(1, 2, 1, 1)]


def test_a_character_that_the_teacher_puts_in() -> None:
    alignment = align(pair_of([b"one", b" two three"], [b"one", b"!!", b" two", b" three"]))
    assert alignment.units_U6[:, :4].tolist() == [[0, 1, 0, 1], [1, 2, 2, 4]]
    assert [(span.teacher_start, span.teacher_end) for span in alignment.lost] == [(1, 2)]


def test_first_unit_is_not_graded_when_one_side_has_a_dummy_space() -> None:
    text = b"hello world"
    pieces = [b"hello", b" world"]
    for student, teacher, graded in (
        (True, False, False),
        (False, True, False),
        (True, True, True),
        (False, False, True),
    ):
        pair = TokenizedPair(text, side(pieces, stripped=student), side(pieces, stripped=teacher), False)
        assert align(pair).supervised_U.tolist() == [graded, True]


def _byte_ids(tokenizer: ModelTokenizer, data: bytes) -> list[int]:
    return [tokenizer.table.tokens.index(bytes([byte])) for byte in data]


STUDENT, TEACHER = ModelTokenizer(small.byte_level()), ModelTokenizer(small.sentencepiece_bpe(style="none"))
(HELLO,) = STUDENT.encode("hello")
REASONS = {
    "special": ([HELLO, STUDENT.stop_ids[0], HELLO], LostReason.ADDED_TOKEN, 2 / 3),
    "unmapped": ([HELLO, HELLO, 999_999], LostReason.UNMAPPED_TOKEN, 2 / 3),
    "truncated": ([HELLO, *_byte_ids(STUDENT, b"\xf0\x9f")], LostReason.TRUNCATED_UTF8, 1 / 3),
    "invalid": ([HELLO, *_byte_ids(STUDENT, b"\xff"), HELLO], LostReason.BYTE_MISMATCH, 2 / 3),
}


@pytest.mark.parametrize("name", REASONS)
def test_losses_are_local_and_have_their_reason(name: str) -> None:
    ids, reason, coverage = REASONS[name]
    alignment = align_response(ids, stopped=False)
    assert alignment.lost_counts == {reason: 1}
    assert alignment.coverage == pytest.approx(coverage)


def align_response(ids: list[int], stopped: bool) -> UnitAlignment:
    return align(TokenizerPair(STUDENT, TEACHER).tokenize(ids, stopped))


REWRITTEN = {
    "nfc": (lambda: small.byte_level(normalizer=normalizers.NFC()), "hello e\u0301 hello"),
    "nfkc": (lambda: small.byte_level(normalizer=normalizers.NFKC()), "hello ﬁ hello"),
    "nfkc longer": (lambda: small.byte_level(normalizer=normalizers.NFKC()), "hello ﷺ hello"),
    "unigram nfkc": (lambda: small.unigram(normalizers.NFKC()), "hello ① hello"),
    "unknown": (lambda: small.unigram(byte_fallback=False), "hello ≈ hello"),
    "space mark": (small.sentencepiece_bpe, "hello ▁ hello"),
}


@pytest.mark.parametrize("name", REWRITTEN)
def test_alignment_resumes_behind_a_rewritten_character(name: str) -> None:
    build, text = REWRITTEN[name]
    ids = STUDENT.encode(text)
    alignment = align(TokenizerPair(STUDENT, ModelTokenizer(build())).tokenize(ids, stopped=False))
    assert set(alignment.lost_counts) == {LostReason.NORMALIZER}
    lost = sum(span.student_end - span.student_start for span in alignment.lost)
    odd = len(STUDENT.encode(text.split()[1]))
    assert odd <= lost <= odd + 2, "the character, and at most the spaces beside it"
    assert alignment.units_U6[-1, 1] == len(ids)


def test_a_truncated_response_may_still_have_its_stop() -> None:
    alignment = align_response([HELLO, *_byte_ids(STUDENT, b"\xf0\x9f"), STUDENT.stop_ids[0]], True)
    assert alignment.lost_counts == {LostReason.TRUNCATED_UTF8: 1}
    assert alignment.num_units == 2
    assert alignment.units_U6[-1].tolist() == [3, 4, 1, 2, 7, 7]


@pytest.mark.parametrize("stopped", [False, True])
def test_an_empty_response(stopped: bool) -> None:
    alignment = align_response([STUDENT.stop_ids[0]] if stopped else [], stopped)
    assert alignment.lost_counts == {LostReason.EMPTY_RESPONSE: 1}
    assert alignment.units_U6.tolist() == ([[0, 1, 0, 1, 0, 0]] if stopped else [])
    assert alignment.coverage == float(stopped)


@pytest.mark.parametrize("stopped", [False, True])
def test_a_dummy_space_by_itself_spells_nothing(stopped: bool) -> None:
    """Two models of one tokenizer both read the sampled ids: one token, no bytes of text, no unit but the stop."""
    tokenizer = ModelTokenizer(small.sentencepiece_bpe(style="prepend"))
    (space,) = (
        i for i, token in enumerate(tokenizer.hf.convert_ids_to_tokens(range(len(tokenizer.hf)))) if token == "▁"
    )
    pair = TokenizerPair(tokenizer, tokenizer)
    alignment = align(pair.tokenize([space, *tokenizer.stop_ids[:1] * stopped], stopped))
    assert alignment.units_U6.tolist() == ([[1, 2, 1, 2, 0, 0]] if stopped else [])
    assert sum(alignment.lost_counts.values()) == 1


def test_ordinary_added_tokens_align_by_bytes() -> None:
    think = STUDENT.hf.convert_tokens_to_ids("<think>")
    alignment = align_response([think, *STUDENT.encode("hello")], stopped=False)
    assert alignment.units_U6[0].tolist() == [0, 1, 0, len(TEACHER.encode("<think>")), 0, len("<think>")]
    assert not alignment.lost


def test_the_stop_never_joins_a_mismatch() -> None:
    """Even right behind a stretch that is lost."""
    pair = pair_of([b"a", b"\xc3\xa9"], [b"a", b"e"], stop=True)
    alignment = align(pair)
    assert alignment.units_U6.tolist() == [[0, 1, 0, 1, 0, 1], [2, 3, 2, 3, 3, 3]]


def test_four_thousand_tokens_in_a_millisecond() -> None:
    rng = np.random.default_rng(0)
    text = rng.integers(97, 123, 18_000, np.uint8).tobytes()
    pieces = [cut(text, np.cumsum(rng.integers(1, 8, 9000)).tolist()) for _ in range(2)]
    pair = pair_of(*pieces)
    assert len(pieces[0]) > 4000
    seconds = []
    for _ in range(100):
        start = time.process_time()
        ALIGNER.align(pair)
        seconds.append(time.process_time() - start)
    assert min(seconds) < 1e-3


def test_invariants_hold_for_a_changed_pair_only_if_it_fits() -> None:
    """The check itself can fail: the same units do not fit another text."""
    pair = pair_of([b"ab"], [b"a", b"b"])
    alignment = ALIGNER.align(pair)
    other = dataclasses.replace(pair, text=b"ax")
    with pytest.raises(ValueError, match="spell"):
        check_invariants(alignment, other)
