"""Token → bytes, for each family, against what the tokenizers themselves encode."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from simct_pl.errors import UnsupportedTokenizerError
from simct_pl.tokenization import bytes as bytes_module
from simct_pl.tokenization.bytes import TokenBytes
from simct_pl.tokenization.model_tokenizer import ModelTokenizer
from tests.tokenization import small
from tests.tokenization.real import corpus, real_tokenizer

FAMILIES = {
    "byte_level": small.byte_level,
    "prepend": small.sentencepiece_bpe,
    "metaspace": lambda: small.sentencepiece_bpe(style="metaspace"),
    "no_prefix": lambda: small.sentencepiece_bpe(style="none"),
    "unigram": small.unigram,
}
TOKENIZERS = {name: ModelTokenizer(build()) for name, build in FAMILIES.items()}


@pytest.mark.parametrize("family", FAMILIES)
@given(text=st.text(alphabet=st.characters(exclude_characters="▁", exclude_categories=["Cs"]), max_size=30))
def test_the_bytes_of_a_text_are_the_text(family: str, text: str) -> None:
    tokenizer = TOKENIZERS[family]
    joined = tokenizer.table.join(tokenizer.encode(text))
    expected = text.encode()
    # SentencePiece's dummy prefix is one more space; Metaspace adds none to a text that has one.
    assert joined in ({expected, b" " + expected} if tokenizer.table.dummy_prefix else {expected})


@pytest.mark.parametrize(
    ("family", "dummy_prefix"),
    [("byte_level", False), ("prepend", True), ("metaspace", True), ("no_prefix", False), ("unigram", True)],
)
def test_dummy_prefix_is_read_from_the_pipeline(family: str, dummy_prefix: bool) -> None:
    assert TOKENIZERS[family].table.dummy_prefix is dummy_prefix


def test_byte_level_with_a_prefix_space_has_a_dummy_prefix() -> None:
    assert TokenBytes.from_tokenizer(small.byte_level(add_prefix_space=True)).dummy_prefix


def test_every_byte_is_one_token_of_a_byte_level_vocabulary() -> None:
    tokens = TOKENIZERS["byte_level"].table.tokens
    assert {token for token in tokens if len(token) == 1} == {bytes([byte]) for byte in range(256)}


def test_added_tokens_are_their_content_and_no_byte_map() -> None:
    hf = small.byte_level(special=("<｜end▁of▁sentence｜>",), added=("Ġ",), eos=None)
    table = TokenBytes.from_tokenizer(hf)
    special, ordinary = (hf.convert_tokens_to_ids(token) for token in ("<｜end▁of▁sentence｜>", "Ġ"))
    assert table[special] == "<｜end▁of▁sentence｜>".encode()
    assert table.is_special_V[special]
    assert table[ordinary] in ("Ġ".encode(), b" ")
    assert not table.is_special_V[ordinary]


def test_sentencepiece_pieces() -> None:
    hf = small.sentencepiece_bpe(added=("▁▁▁", "<0x41>x"))
    table = TokenBytes.from_tokenizer(hf)
    of = {token: table[token_id] for token, token_id in hf.get_vocab().items()}
    assert of["<0x0A>"] == b"\n"
    assert of["<0xF0>"] == b"\xf0"
    assert of["▁hello"] == b" hello"
    assert of["▁▁▁"] == b"   ", "▁ is a space inside added tokens too"
    assert of["<0x41>x"] == b"<0x41>x"
    assert of["é"] == "é".encode()
    fallback = {token for token, token_id in hf.get_vocab().items() if table.is_fallback_V[token_id]}
    assert fallback == {f"<0x{byte:02X}>" for byte in range(256)}


def test_fallback_spelling_is_plain_text_to_a_byte_level_vocabulary() -> None:
    table = TokenBytes.from_tokenizer(small.byte_level(words=("<0x0A>",)))
    assert b"<0x0A>" in table.tokens
    assert not table.is_fallback_V.any()


def test_the_unknown_token_is_special() -> None:
    hf = small.unigram(byte_fallback=False)
    assert TokenBytes.from_tokenizer(hf).is_special_V[hf.convert_tokens_to_ids("<unk>")]


def _word_level() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "hello": 1}, unk_token="[UNK]"))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def _word_end_bpe() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE({"a": 0, "a</w>": 1}, [], end_of_word_suffix="</w>"))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def _whitespace_bpe() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE({"a": 0, "b": 1}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@pytest.mark.parametrize("build", [small.wordpiece, _word_level, _word_end_bpe, _whitespace_bpe])
def test_families_without_exact_bytes_are_refused_with_a_fix(build) -> None:
    with pytest.raises(UnsupportedTokenizerError, match=r"no exact bytes.* Use a model with"):
        TokenBytes.from_tokenizer(build())


@pytest.mark.parametrize("name", ["smollm2", "deepseek", "mistral", "qwen"])
def test_real_tokenizers_spell_the_corpus(name: str) -> None:
    """Every text comes back byte for byte, but for the losses that each tokenizer is known to have."""
    tokenizer = real_tokenizer(name)
    lossy = []
    for text in corpus():
        joined = tokenizer.table.join(tokenizer.encode(text))
        if joined not in (text.encode(), b" " + text.encode()):
            lossy.append(text)
    explained = {
        "smollm2": lambda text: any(char in text for char in "\x04\x06\x13\x14\x16\x1d") or max(text) >= "\U00040000",
        "deepseek": lambda text: False,
        "mistral": lambda text: "▁" in text,
        "qwen": lambda text: normalizers.NFC().normalize_str(text) != text,
    }[name]
    assert [text for text in lossy if not explained(text)] == []


def test_ids_beyond_the_table_are_unknown_not_wrapped() -> None:
    table = TokenBytes.from_list([b"a", None, b"bc"])
    assert table.known(np.array([0, 1, 2, 3, -1])).tolist() == [True, False, True, False, False]
    for outside in (3, -1):
        with pytest.raises(IndexError, match="outside the table"):
            table[outside]


@given(
    tokens=st.lists(st.binary(max_size=5), min_size=1, max_size=8),
    picks=st.lists(st.integers(min_value=0, max_value=7), max_size=20),
)
def test_gather_is_join_with_ends(tokens: list[bytes], picks: list[int]) -> None:
    ids = [pick % len(tokens) for pick in picks]
    joined, ends_N = TokenBytes.from_list(tokens).gather(np.array(ids, np.int64))
    assert joined == b"".join(tokens[i] for i in ids)
    assert ends_N.tolist() == [sum(len(tokens[i]) for i in ids[: n + 1]) for n in range(len(ids))]


@pytest.fixture
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SIMCT_PL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def _same(a: TokenBytes, b: TokenBytes) -> bool:
    return a.tokens == b.tokens and a.fingerprint == b.fingerprint and (a.is_special_V == b.is_special_V).all()


def test_second_load_comes_from_disk(cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hf = small.sentencepiece_bpe()
    first = TokenBytes.from_tokenizer(hf)
    assert [file.suffix for file in cache_folder.iterdir()] == [".npz"], "no temporary file is left"
    monkeypatch.setattr(bytes_module, "read_token_bytes", lambda definition: pytest.fail("the table was built again"))
    second = TokenBytes.from_tokenizer(hf)
    assert _same(first, second)
    assert second.dummy_prefix is True


def test_another_tokenizer_has_another_file(cache_folder: Path) -> None:
    tables = [TokenBytes.from_tokenizer(small.byte_level(eos=eos)) for eos in ("<|endoftext|>", "<think>")]
    assert tables[0].fingerprint != tables[1].fingerprint
    assert len(list(cache_folder.iterdir())) == 2


@pytest.mark.parametrize("content", [b"", b"no npz at all", None])
def test_a_broken_cache_file_is_built_again(cache_folder: Path, content: bytes | None) -> None:
    hf = small.byte_level()
    first = TokenBytes.from_tokenizer(hf)
    (file,) = cache_folder.iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2] if content is None else content)
    assert _same(first, TokenBytes.from_tokenizer(hf))
    assert file.read_bytes()[:4] == whole[:4], "and put in its place"


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("SIMCT_PL_CACHE", str(tmp_path / "file" / "cache"))
    assert len(TokenBytes.from_tokenizer(small.byte_level())) > 256


def test_a_quarter_of_a_million_tokens_in_two_seconds() -> None:
    vocab = {f"Ġtoken{i}": i for i in range(262_144)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    hf = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    start = time.process_time()
    table = TokenBytes.from_tokenizer(hf, cache=False)
    assert time.process_time() - start < 2  # processor time: other tests may run beside this one
    assert table[262_143] == b" token262143"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_response_is_its_text_without_stop_dummy_space_and_rows_of_padding(family: str) -> None:
    tokenizer = TOKENIZERS[family]
    beyond = len(tokenizer.table) + 3  # a row of a padded embedding, which a model may sample
    ids = [*tokenizer.encode("hello world"), beyond, tokenizer.found_stop_ids[0]]
    assert tokenizer.response_text(ids) == "hello world"
    cut = tokenizer.encode("hello 🙂")[:-1]
    assert tokenizer.response_text(cut).startswith("hello ")
    assert tokenizer.response_text([]) == ""
