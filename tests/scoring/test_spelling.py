"""One model's tokens in the other's: inside a text, byte for byte, or not at all."""

from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerFast

from simct_pl.scoring.spelling import Speller
from simct_pl.tokenization.model_tokenizer import ModelTokenizer
from simct_pl.tokenization.pair import TokenizerPair
from tests.tokenization.small import byte_level, sentencepiece_bpe

FEW, MANY = ("hap", "py"), ("hap", "py", "happy", "world", "12", "é")


def spellers(student: PreTrainedTokenizerFast, teacher: PreTrainedTokenizerFast) -> tuple[Speller, TokenizerPair]:
    pair = TokenizerPair(ModelTokenizer(student), ModelTokenizer(teacher))
    return Speller(pair.student, pair.teacher, pair.shared_vocab), pair


PAIRS = {
    "byte-level": (lambda: byte_level(MANY), lambda: byte_level(FEW)),
    "byte-level in byte fallback": (lambda: byte_level(MANY), lambda: sentencepiece_bpe(FEW)),
    "byte fallback in byte-level": (lambda: sentencepiece_bpe(MANY), lambda: byte_level(FEW)),
    "no dummy prefix": (lambda: sentencepiece_bpe(MANY, style="none"), lambda: sentencepiece_bpe(FEW, style="none")),
}


@pytest.mark.parametrize("names", PAIRS)
def test_spellings_have_the_bytes_of_the_token_and_several_tokens(names: str) -> None:
    student, teacher = PAIRS[names]
    speller, pair = spellers(student(), teacher())
    ids = speller.unshared_ids_W.tolist()
    texts = [pair.student.table[i] for i in ids]
    assert {b"happy", b" happy", b"world", b"12"} <= set(texts)
    for text, spelling in zip(texts, speller(ids), strict=True):
        if text.isascii():
            assert spelling is not None, text
        if spelling is not None:
            assert pair.teacher.table.join(spelling) == text
            assert len(spelling) > 1


def test_no_token_of_both_vocabularies_and_no_control_token_is_unshared() -> None:
    speller, pair = spellers(byte_level(MANY), sentencepiece_bpe(FEW))
    texts = {pair.student.table[i] for i in speller.unshared_ids_W.tolist()}
    assert not texts & set(pair.shared_vocab.column_of)
    assert not set(speller.unshared_ids_W.tolist()) & set(pair.student.found_stop_ids)


def test_half_a_character_has_no_spelling() -> None:
    speller, pair = spellers(sentencepiece_bpe(MANY), byte_level(FEW))
    half = next(i for i in range(len(pair.student.table)) if pair.student.table[i] == "é".encode()[:1])
    assert speller([half]) == [None]


def test_one_tokenizer_on_both_sides_has_nothing_unshared() -> None:
    speller, _ = spellers(byte_level(MANY), byte_level(MANY))
    assert len(speller.unshared_ids_W) == 0


def test_spelling_leaves_the_teachers_tokenizer_as_it_was() -> None:
    teacher = byte_level(FEW)
    speller, _ = spellers(byte_level(MANY), teacher)
    assert speller.other.fingerprint
    assert teacher.backend_tokenizer.encode_special_tokens is False
