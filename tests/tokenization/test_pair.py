"""One response in the tokens of both models: what the teacher reads, and which tokens are marked."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simct_pl.errors import AlignmentError, MissingStopTokenError, TokenizerError
from simct_pl.tokenization.model_tokenizer import ModelTokenizer
from simct_pl.tokenization.pair import ADDED, MISMATCH, NORMALIZED, TRUNCATED, UNMAPPED, TokenizerPair, readable_text
from tests.tokenization import small

BYTE_LEVEL = ModelTokenizer(small.byte_level())
PREPEND = ModelTokenizer(small.sentencepiece_bpe())
METASPACE = ModelTokenizer(small.sentencepiece_bpe(style="metaspace"))
GEMMA_LIKE = ModelTokenizer(small.sentencepiece_bpe(style="none"))


def _bytes_of(tokenizer: ModelTokenizer, data: bytes) -> list[int]:
    """One id a byte."""
    first = {token: token_id for token_id, token in reversed(list(enumerate(tokenizer.table.tokens)))}
    return [first[bytes([byte])] for byte in data]


def test_sampled_ids_stay_as_they_are() -> None:
    """`hello` sampled as five letters is not what encoding the text would give."""
    ids = _bytes_of(BYTE_LEVEL, b"hello")
    pair = TokenizerPair(BYTE_LEVEL, GEMMA_LIKE).tokenize(ids, stopped=False)
    assert pair.student.ids.tolist() == ids
    assert pair.text == b"hello"
    assert GEMMA_LIKE.table.join(pair.teacher.ids) == b"hello"
    assert pair.teacher.num_content == 1
    assert pair.student.ends_N.tolist() == [1, 2, 3, 4, 5]


def test_stop_is_paired_with_stop() -> None:
    (stop,) = BYTE_LEVEL.stop_ids
    pair = TokenizerPair(BYTE_LEVEL, PREPEND).tokenize([*BYTE_LEVEL.encode("hello"), stop], stopped=True)
    assert pair.has_stop
    assert pair.text == b"hello"
    assert pair.teacher.ids[-1] == PREPEND.hf.eos_token_id
    assert pair.teacher.num_content == len(pair.teacher.ids) - 1


def test_a_cut_response_has_no_stop() -> None:
    pair = TokenizerPair(BYTE_LEVEL, PREPEND).tokenize(BYTE_LEVEL.encode("hello"), stopped=False)
    assert not pair.has_stop
    assert pair.teacher.ids[-1] != PREPEND.hf.eos_token_id


@pytest.mark.parametrize("ids", [[], [5]])
def test_stopped_without_a_stop_is_refused(ids: list[int]) -> None:
    with pytest.raises(AlignmentError, match="Pass stopped=False"):
        TokenizerPair(BYTE_LEVEL, PREPEND).tokenize(ids, stopped=True)


def test_a_teacher_without_stop_is_refused_when_one_is_needed() -> None:
    pair = TokenizerPair(BYTE_LEVEL, ModelTokenizer(small.sentencepiece_bpe(eos=None), name="some/teacher"))
    assert not pair.tokenize(BYTE_LEVEL.encode("hello"), stopped=False).has_stop
    with pytest.raises(MissingStopTokenError, match="some/teacher has no token that ends a turn"):
        pair.tokenize([*BYTE_LEVEL.encode("hello"), *BYTE_LEVEL.stop_ids], stopped=True)


def test_the_same_tokenizer_gets_the_stop_that_was_sampled() -> None:
    both = ModelTokenizer(small.byte_level(chat_template=small.CHATML))
    assert len(both.stop_ids) == 2
    pair = TokenizerPair(both, both).tokenize([*both.encode("hello"), both.stop_ids[1]], stopped=True)
    assert pair.teacher.ids.tolist() == pair.student.ids.tolist()


def test_control_tokens_written_out_are_text_to_the_teacher() -> None:
    text = "a<|im_end|>b"
    ids = PREPEND.encode(text)
    pair = TokenizerPair(PREPEND, BYTE_LEVEL).tokenize(ids, stopped=False)
    assert pair.teacher.data == pair.text == text.encode()
    assert not BYTE_LEVEL.table.is_special_V[pair.teacher.ids].any()
    assert not pair.student.faults_N.any()
    assert BYTE_LEVEL.hf.encode("<|im_end|>", add_special_tokens=False) == [
        BYTE_LEVEL.hf.convert_tokens_to_ids("<|im_end|>")
    ], "and prompts still get theirs"


def test_a_sampled_control_token_is_marked() -> None:
    special = BYTE_LEVEL.hf.convert_tokens_to_ids("<|im_start|>")
    ids = [*BYTE_LEVEL.encode("hello"), special, *BYTE_LEVEL.encode("world")]
    pair = TokenizerPair(BYTE_LEVEL, PREPEND).tokenize(ids, stopped=False)
    assert pair.student.faults_N.tolist() == [ADDED if token_id == special else 0 for token_id in ids]
    assert pair.text == b"hello<|im_start|>world"


def test_an_ordinary_added_token_is_text() -> None:
    think = BYTE_LEVEL.hf.convert_tokens_to_ids("<think>")
    pair = TokenizerPair(BYTE_LEVEL, PREPEND).tokenize([think], stopped=False)
    assert pair.text == b"<think>"
    assert not pair.student.faults_N.any()


@pytest.mark.parametrize("beyond", [10_000, -1])
def test_an_id_without_bytes_is_marked(beyond: int) -> None:
    pair = TokenizerPair(BYTE_LEVEL, PREPEND).tokenize([*BYTE_LEVEL.encode("hello"), beyond], stopped=False)
    assert pair.text == b"hello"
    assert pair.student.faults_N.tolist() == [0, UNMAPPED]
    assert pair.student.ends_N.tolist() == [5, 5]


def test_a_response_cut_inside_a_character() -> None:
    ids = _bytes_of(BYTE_LEVEL, b"hi" + "👍".encode()[:3])
    pair = TokenizerPair(BYTE_LEVEL, PREPEND).tokenize(ids, stopped=False)
    assert pair.text == b"hi" + "👍".encode()[:3]
    assert pair.teacher.data == b"hi", "the teacher reads whole characters"
    assert pair.student.faults_N.tolist() == [0, 0, TRUNCATED, TRUNCATED, TRUNCATED]


def test_invalid_bytes_are_read_as_a_replacement() -> None:
    pair = TokenizerPair(BYTE_LEVEL, PREPEND).tokenize(_bytes_of(BYTE_LEVEL, b"a\xffb"), stopped=False)
    assert pair.teacher.data == "a\ufffdb".encode()
    assert pair.student.faults_N.tolist() == [0, MISMATCH, 0]


@given(st.binary(max_size=30))
def test_readable_text_is_what_python_reads(data: bytes) -> None:
    text, damages = readable_text(data)
    cut = [start for start, _, fault in damages if fault == TRUNCATED]
    assert text == data[: cut[0] if cut else len(data)].decode("utf-8", "replace")
    assert all(start < end for start, end, _ in damages)
    assert bool(damages) == (data.decode("utf-8", "replace").encode() != data)


def test_the_teachers_unknown_token_is_marked() -> None:
    teacher = ModelTokenizer(small.unigram(byte_fallback=False))
    pair = TokenizerPair(BYTE_LEVEL, teacher).tokenize(BYTE_LEVEL.encode("a😀b"), stopped=False)
    assert NORMALIZED in pair.teacher.faults_N


@pytest.mark.parametrize("teacher", [PREPEND, METASPACE], ids=["prepend", "metaspace"])
@pytest.mark.parametrize("text", ["hello", " hello", "  hello", ""])
def test_the_teachers_dummy_space_is_not_text(teacher: ModelTokenizer, text: str) -> None:
    pair = TokenizerPair(GEMMA_LIKE, teacher).tokenize(GEMMA_LIKE.encode(text), stopped=False)
    assert pair.text == pair.teacher.data == text.encode()
    assert pair.teacher.ends_N[-1:].tolist() == ([len(text)] if text else [])


def test_the_students_dummy_space_is_not_text() -> None:
    ids = PREPEND.encode("hello world")
    pair = TokenizerPair(PREPEND, BYTE_LEVEL).tokenize(ids, stopped=False)
    assert PREPEND.table.join(ids) == b" hello world"
    assert pair.text == pair.teacher.data == b"hello world"
    assert (pair.student.stripped, pair.teacher.stripped) == (True, False)


def test_a_continuation_without_a_space_keeps_its_first_letter() -> None:
    ids = [PREPEND.hf.convert_tokens_to_ids("hello")]
    pair = TokenizerPair(PREPEND, BYTE_LEVEL).tokenize(ids, stopped=False)
    assert (pair.text, pair.student.stripped) == (b"hello", False)


def test_a_batch_is_its_responses() -> None:
    pair = TokenizerPair(BYTE_LEVEL, PREPEND)
    responses = [(BYTE_LEVEL.encode("hello"), False), ([*BYTE_LEVEL.encode("the 123"), BYTE_LEVEL.stop_ids[0]], True)]
    responses.append(([], False))
    for batched, (ids, stopped) in zip(pair.tokenize_batch(responses), responses, strict=True):
        single = pair.tokenize(ids, stopped)
        assert batched.text == single.text
        assert batched.teacher.ids.tolist() == single.teacher.ids.tolist()
        assert batched.has_stop == stopped


def test_numpy_ids_are_taken_too() -> None:
    pair = TokenizerPair(BYTE_LEVEL, PREPEND)
    ids = np.array([*BYTE_LEVEL.encode("hello"), BYTE_LEVEL.stop_ids[0]])
    assert pair.tokenize(ids, True).text == b"hello"


def test_the_shared_vocabulary_is_made_once() -> None:
    pair = TokenizerPair(BYTE_LEVEL, PREPEND)
    assert pair.shared_vocab is pair.shared_vocab
    assert pair.shared_vocab.stop_column == len(pair.shared_vocab) - 1


def test_canonical_spelling_alone_or_behind_a_line() -> None:
    hello = PREPEND.hf.convert_tokens_to_ids("hello")
    assert PREPEND.encode("hello") != [hello]
    assert PREPEND.is_canonical("hello", PREPEND.encode("hello"))  # alone, behind its dummy space
    assert PREPEND.is_canonical("hello", [hello])  # as what follows a template's last newline
    assert not PREPEND.is_canonical("hello", _bytes_of(PREPEND, b"hello"))
    assert BYTE_LEVEL.is_canonical("hello", BYTE_LEVEL.encode("hello"))
    assert not BYTE_LEVEL.is_canonical("hello", _bytes_of(BYTE_LEVEL, b"hello"))


HALF_CHARACTERS = ["\ud800", "1+\udc002", "🙂\ud83d", "\ude42\ud83d"]


@pytest.mark.parametrize("text", HALF_CHARACTERS)
def test_half_a_character_is_a_typed_error_everywhere_that_takes_a_text(text: str) -> None:
    tokenizer = ModelTokenizer(small.byte_level(chat_template=small.CHATML))
    plain = ModelTokenizer(small.byte_level())
    message = {"role": "user", "content": text}
    for read in (
        lambda: tokenizer.encode(text),
        lambda: tokenizer.encode_batch(["whole", text]),
        lambda: tokenizer.is_canonical(text, [1]),
        lambda: tokenizer.render_prompt([message]),
        lambda: plain.render_prompt([message]),
        lambda: TokenizerPair(tokenizer, plain).tokenize_text(text),
    ):
        with pytest.raises(TokenizerError, match=r"half a character .* at \d"):
            read()
    mended = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # what the error says to do
    assert TokenizerPair(tokenizer, plain).tokenize_text(mended).text == mended.encode()
    assert tokenizer.encode("1+2") == tokenizer.encode_batch(["1+2"])[0]  # nothing is left set by a failure
    assert tokenizer.hf.backend_tokenizer.encode_special_tokens is False


@pytest.mark.parametrize("value", [None, b"bytes", 3])
def test_what_is_no_text_is_a_typed_error(value: object) -> None:
    tokenizer = ModelTokenizer(small.byte_level())
    for read in (tokenizer.encode, TokenizerPair(tokenizer, tokenizer).tokenize_text):
        with pytest.raises(TokenizerError, match="is no text"):
            read(value)  # type: ignore[arg-type]
