"""The 267 hand-made texts through real tokenizers, both directions, sampled ids and stops included."""

from __future__ import annotations

import itertools

import pytest
from tokenizers import normalizers

from simct_pl.alignment import AnchorMergedAligner, CommonBoundaryAligner, OneToOneAligner, check_invariants
from simct_pl.tokenization.pair import TokenizerPair
from simct_pl.types import LostReason
from tests.tokenization.real import corpus, real_tokenizer

PAIRS = list(itertools.permutations(["smollm2", "deepseek", "mistral", "qwen"], 2))


def _changes(name: str, text: str) -> bool:
    """Whether a tokenizer is known not to give this text back."""
    if name == "smollm2":  # its vocabulary lacks these bytes
        return any(char in text for char in "\x04\x06\x13\x14\x16\x1d") or max(text, default="") >= "\U00040000"
    if name == "mistral":  # it spells a space as ▁; a space alone is its dummy prefix
        return "▁" in text or text == " "
    return name == "qwen" and normalizers.NFC().normalize_str(text) != text


@pytest.mark.parametrize(("student", "teacher"), PAIRS)
def test_corpus(student: str, teacher: str) -> None:
    pair = TokenizerPair(real_tokenizer(student), real_tokenizer(teacher))
    aligner, stop = CommonBoundaryAligner(), pair.student.stop_ids[0]
    texts = corpus()
    assert len(texts) == 267
    sampled = [([*pair.student.encode(text), stop], True) for text in texts]
    for text, tokenized in zip(texts, pair.tokenize_batch(sampled), strict=True):
        alignment = aligner.align(tokenized)
        check_invariants(alignment, tokenized)
        assert alignment.has_stop
        reasons = set(alignment.lost_counts)
        if not text:
            assert reasons == {LostReason.EMPTY_RESPONSE}
        elif reasons:
            assert reasons <= {LostReason.NORMALIZER, LostReason.BYTE_MISMATCH, LostReason.UNMAPPED_TOKEN}
            assert _changes(student, text) or _changes(teacher, tokenized.text.decode("utf-8", "replace")), text
        else:
            assert alignment.coverage == 1.0
        for other in (OneToOneAligner(), AnchorMergedAligner()):
            check_invariants(other.align(tokenized), tokenized, minimal=False, complete=False)


@pytest.mark.parametrize(("student", "teacher"), PAIRS)
def test_given_texts_keep_their_own_offsets(student: str, teacher: str) -> None:
    pair = TokenizerPair(real_tokenizer(student), real_tokenizer(teacher))
    for text in corpus():
        tokenized = pair.tokenize_text(text)
        assert tokenized.text == text.encode()
        check_invariants(CommonBoundaryAligner().align(tokenized), tokenized)


@pytest.mark.parametrize(("student", "teacher"), PAIRS)
def test_one_odd_character_does_not_lose_the_rest(student: str, teacher: str) -> None:
    """Coverage after one `≈` and one character that some normaliser rewrites, in the middle of 2,000 words."""
    prose = "The farmer has 17 sheep and sells 9 of them, so the answer is 17 - 9 = 8. " * 100
    text = prose + "≈ e\u0301 ▁ " + prose
    pair = TokenizerPair(real_tokenizer(student), real_tokenizer(teacher))
    tokenized = pair.tokenize(pair.student.encode(text), stopped=False)
    alignment = CommonBoundaryAligner().align(tokenized)
    check_invariants(alignment, tokenized)
    assert alignment.coverage > 0.99
