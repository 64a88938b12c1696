"""Which tokens two vocabularies share, by bytes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simct_pl.tokenization.bytes import TokenBytes
from simct_pl.tokenization.shared_vocab import SharedVocab
from tests.tokenization import small
from tests.tokenization.real import real_tokenizer

VOCABULARIES = st.lists(st.binary(min_size=1, max_size=4).map(lambda b: bytes(x % 3 + 97 for x in b)), max_size=12)


def test_spellings_of_the_same_bytes_are_shared() -> None:
    byte_level, sentencepiece = small.byte_level(), small.sentencepiece_bpe()
    shared = SharedVocab.build(TokenBytes.from_tokenizer(byte_level), TokenBytes.from_tokenizer(sentencepiece))
    for ours, theirs in (("Ġhello", "▁hello"), ("Ċ", "<0x0A>"), ("hello", "hello"), ("Ġ", "▁")):
        column = shared.student_columns[byte_level.convert_tokens_to_ids(ours)]
        assert column >= 0
        assert column == shared.teacher_columns[sentencepiece.convert_tokens_to_ids(theirs)]


def test_a_fallback_twin_is_no_column_of_its_own() -> None:
    student = TokenBytes.from_list([b"1", b"2", b"\xff"], fallback_ids=[0, 2])
    shared = SharedVocab.build(TokenBytes.from_list([b"1", b"1", b"\xff"], fallback_ids=[0, 2]), student)
    assert shared.student_ids_V.tolist() == [1, 2], "the ordinary `1`; `\\xff` exists as a fallback only"
    assert shared.student_columns.tolist() == [-1, 0, 1]
    assert shared.student_buckets.tolist() == [0, 0, 1], "the twin's mass is that of its bytes"


def test_control_tokens_are_not_text() -> None:
    student = TokenBytes.from_list([b"a", b"<s>", b"<think>"], special_ids=[1])
    teacher = TokenBytes.from_list([b"<s>", b"a", b"<think>", b"b"])
    shared = SharedVocab.build(student, teacher)
    assert [student[i] for i in shared.student_ids_V] == [b"<think>", b"a"]
    assert [teacher[i] for i in shared.teacher_ids_V] == [b"<think>", b"a"]
    assert shared.stop_column is None


def test_stop_is_paired_with_stop_and_comes_last() -> None:
    student = TokenBytes.from_list([b"z", b"<|im_end|>", b"<|eot|>", b"a"], special_ids=[1, 2])
    teacher = TokenBytes.from_list([b"a", b"</s>", b"z"], special_ids=[1])
    shared = SharedVocab.build(student, teacher, [1, 2], [1])
    assert shared.student_ids_V.tolist() == [3, 0, 1]
    assert shared.teacher_ids_V.tolist() == [0, 2, 1]
    assert shared.stop_column == 2
    assert shared.student_columns.tolist() == [1, 2, 2, 0]
    assert (shared.student_extra_stop_ids, shared.teacher_extra_stop_ids) == ((2,), ())
    assert shared.column(b"<|im_end|>") == -1, "the stop is not spelt by text"


def test_a_stop_on_one_side_only_makes_no_column() -> None:
    tables = [TokenBytes.from_list([b"a", b"</s>"], special_ids=[1]), TokenBytes.from_list([b"a", b"b"])]
    shared = SharedVocab.build(*tables, student_stop_ids=[1])
    assert shared.stop_column is None
    assert len(shared) == 1
    assert shared.student_columns.tolist() == [0, -1]


def test_the_same_tokenizer_shares_every_id() -> None:
    table = TokenBytes.from_list([b"1", b"1", b"<s>", None, b"</s>"], special_ids=[2, 4], fallback_ids=[0])
    shared = SharedVocab.build(table, table, [4, 2], [4, 2])
    for array in (shared.student_ids_V, shared.teacher_ids_V, shared.student_columns, shared.student_buckets):
        assert array.tolist() == [0, 1, 2, 3, 4]
    assert shared.stop_column == 4
    assert shared.student_extra_stop_ids == ()


def test_the_same_tokenizer_shares_the_ids_that_both_models_have() -> None:
    table = TokenBytes.from_list([b"1", b"</s>", b"<image>"], special_ids=[1, 2])
    for student, teacher in ((table.up_to(2), table), (table, table.up_to(2))):
        shared = SharedVocab.build(student, teacher, [1], [1])
        assert shared.student_ids_V.tolist() == shared.teacher_ids_V.tolist() == [0, 1]
        assert shared.student_columns.tolist() == [0, 1, -1][: len(student)]
        assert shared.teacher_columns.tolist() == [0, 1, -1][: len(teacher)]
        assert shared.stop_column == 1


def test_the_same_tokenizer_with_other_stops_still_pairs_them() -> None:
    table = TokenBytes.from_list([b"a", b"<s>", b"</s>"], special_ids=[1, 2])
    shared = SharedVocab.build(table, table, [1], [2])
    assert shared.stop_column == shared.student_columns[1] == shared.teacher_columns[2]


@given(student=VOCABULARIES, teacher=VOCABULARIES, text=st.text("abc", max_size=8).map(str.encode))
def test_against_brute_force(student: list[bytes], teacher: list[bytes], text: bytes) -> None:
    # The marker keeps the two tables apart when hypothesis draws the same list twice.
    shared = SharedVocab.build(TokenBytes.from_list([*student, b"#1"]), TokenBytes.from_list([*teacher, b"#2"]))
    common = sorted(set(student) & set(teacher))
    assert [shared.student[i] for i in shared.student_ids_V] == common
    assert [shared.teacher[i] for i in shared.teacher_ids_V] == common
    assert shared.column(text) == (common.index(text) if text in common else -1)
    prefixes = [text[:n] for n in range(1, len(text)) if text[:n] in common]
    assert [common[column] for column in shared.prefix_columns(text)] == prefixes
    for table, buckets in ((shared.student, shared.student_buckets), (shared.teacher, shared.teacher_buckets)):
        for token, column in zip(table.tokens, buckets.tolist(), strict=True):
            fitting = [other for other in common if token.startswith(other)]
            assert column == (common.index(max(fitting, key=len)) if fitting else -1)


def test_columns_invert_ids() -> None:
    shared = SharedVocab.build(
        TokenBytes.from_tokenizer(small.byte_level()), TokenBytes.from_tokenizer(small.sentencepiece_bpe())
    )
    assert (shared.student_columns[shared.student_ids_V] == np.arange(len(shared))).all()
    assert (shared.teacher_columns[shared.teacher_ids_V] == np.arange(len(shared))).all()


@pytest.mark.parametrize(("student", "teacher", "expected"), [("mistral", "qwen", 29_234), ("qwen", "mistral", 29_234)])
def test_real_pair(student: str, teacher: str, expected: int) -> None:
    """29,103 ordinary SentencePiece tokens and 131 bytes that only its fallback has."""
    tables = [real_tokenizer(name).table for name in (student, teacher)]
    assert len(SharedVocab.build(*tables)) == expected
