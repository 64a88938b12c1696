"""Opening tokenizers: folders, files, hub names, and everything that is none of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from simct_pl.errors import MissingFileError, MissingStopTokenError, ModelFolderError, UnsupportedTokenizerError
from simct_pl.tokenization.model_tokenizer import ModelTokenizer
from tests.tokenization import small
from tests.tokenization.real import packaged


def _save(folder: Path, **config: object) -> Path:
    """A folder with a bare tokenizer.json and a tokenizer_config.json of our own."""
    folder.mkdir(exist_ok=True)
    small.byte_level(eos=None).backend_tokenizer.save(str(folder / "tokenizer.json"))
    if config:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def test_control_tokens_and_template_come_from_the_files_beside_it(tmp_path: Path) -> None:
    entry = {"__type": "AddedToken", "content": "<|endoftext|>", "lstrip": False, "special": True}
    folder = _save(tmp_path, eos_token=entry, bos_token="<|im_start|>", chat_template="a {{ messages[0].content }}")
    tokenizer = ModelTokenizer.from_pretrained(str(folder))
    assert tokenizer.hf.eos_token == "<|endoftext|>"
    assert tokenizer.hf.bos_token == "<|im_start|>"
    assert tokenizer.hf.chat_template == "a {{ messages[0].content }}"
    assert tokenizer.name == str(folder)


def test_a_template_file_wins(tmp_path: Path) -> None:
    folder = _save(tmp_path, chat_template="old")
    (folder / "chat_template.jinja").write_text("new")
    assert ModelTokenizer.from_pretrained(str(folder)).hf.chat_template == "new"


def test_the_default_of_several_templates(tmp_path: Path) -> None:
    named = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    assert ModelTokenizer.from_pretrained(str(_save(tmp_path, chat_template=named))).hf.chat_template == "d"


def test_a_tokenizer_json_path(tmp_path: Path) -> None:
    folder = _save(tmp_path, eos_token="<|endoftext|>")
    by_file = ModelTokenizer.from_pretrained(str(folder / "tokenizer.json"))
    assert by_file.table.fingerprint == ModelTokenizer.from_pretrained(str(folder)).table.fingerprint


def test_specials_that_only_the_configuration_names(tmp_path: Path) -> None:
    folder = _save(tmp_path, additional_special_tokens=["<|tool|>"], eos_token="<|end|>")
    tokenizer = ModelTokenizer.from_pretrained(str(folder))
    for token in ("<|tool|>", "<|end|>"):
        token_id = tokenizer.hf.convert_tokens_to_ids(token)
        assert tokenizer.table[token_id] == token.encode()
        assert tokenizer.table.is_special_V[token_id]


def test_stops_of_the_generation_config(tmp_path: Path) -> None:
    folder = _save(tmp_path)
    for eos, expected in ((3, (3,)), ([4, 3], (4, 3)), ([3, 999_999], (3,))):
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": eos}))
        assert ModelTokenizer.from_pretrained(str(folder)).stop_ids == expected


@pytest.mark.parametrize("nested", [False, True], ids=["text model", "with a vision part"])
def test_ids_beyond_the_models_rows_have_no_bytes_and_stop_nothing(nested: bool, tmp_path: Path) -> None:
    folder = _save(tmp_path, eos_token="<|endoftext|>")
    whole = ModelTokenizer.from_pretrained(str(folder))
    (end,) = whole.stop_ids
    sizes = {"vocab_size": end}
    (folder / "config.json").write_text(json.dumps({"text_config": sizes} if nested else sizes))
    tokenizer = ModelTokenizer.from_pretrained(str(folder))
    assert len(tokenizer.table) == end < len(whole.table)
    assert tokenizer.table.tokens == whole.table.tokens[:end]
    assert tokenizer.found_stop_ids == ()


def test_truncation_and_padding_of_the_file_are_off(tmp_path: Path) -> None:
    hf = small.byte_level()
    hf.backend_tokenizer.enable_truncation(max_length=2)
    hf.backend_tokenizer.enable_padding(length=8)
    hf.backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    tokenizer = ModelTokenizer.from_pretrained(str(tmp_path))
    assert tokenizer.table.join(tokenizer.encode("a long text")) == b"a long text"


def test_no_stop_is_an_error_only_when_asked_for(tmp_path: Path) -> None:
    tokenizer = ModelTokenizer.from_pretrained(str(_save(tmp_path)))
    assert tokenizer.found_stop_ids == ()
    with pytest.raises(MissingStopTokenError, match="Add one of the three"):
        _ = tokenizer.stop_ids


@pytest.mark.parametrize("path", ["/no/such/folder", "./missing", "nobody/no-such-model", "tokenizer.json"])
def test_nothing_there(path: str) -> None:
    with pytest.raises(MissingFileError, match=path):
        ModelTokenizer.from_pretrained(path)


def test_a_folder_without_a_tokenizer_lists_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(b"")
    with pytest.raises(ModelFolderError, match=r"expected tokenizer.json .* found \['weights.bin'\]"):
        ModelTokenizer.from_pretrained(str(tmp_path))


@pytest.mark.parametrize("content", ["", "{}", '{"model": {"type": "BPE"}}', "no json"])
def test_a_file_that_is_no_tokenizer(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ModelFolderError, match="cannot be read as a tokenizer"):
        ModelTokenizer.from_pretrained(str(tmp_path))


def test_a_broken_configuration(tmp_path: Path) -> None:
    folder = _save(tmp_path)
    (folder / "tokenizer_config.json").write_text("{")
    with pytest.raises(ModelFolderError, match=r"tokenizer_config.json .* is not valid JSON"):
        ModelTokenizer.from_pretrained(str(folder))


def test_wordpiece_is_refused_with_or_without_its_json(tmp_path: Path) -> None:
    small.wordpiece().backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UnsupportedTokenizerError):
        ModelTokenizer.from_pretrained(str(tmp_path))
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "vocab.txt").write_text("[UNK]\nhe\n##llo\n")
    with pytest.raises(UnsupportedTokenizerError, match="WordPiece"):
        ModelTokenizer.from_pretrained(str(tmp_path))


def test_a_sentencepiece_model_is_converted(tmp_path: Path) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    source = packaged("mistral-common", "tokenizer.model.v1")
    shutil.copy(source, tmp_path / "tokenizer.model")
    tokenizer = ModelTokenizer.from_pretrained(str(tmp_path))
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(source))
    for text in ("Hello world", "naïve 👍", "x = 12\n\treturn y"):
        assert tokenizer.encode(text) == theirs.encode(text)


def test_a_broken_sentencepiece_model(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"nothing of the kind")
    with pytest.raises(ModelFolderError, match="cannot be converted"):
        ModelTokenizer.from_pretrained(str(tmp_path))
