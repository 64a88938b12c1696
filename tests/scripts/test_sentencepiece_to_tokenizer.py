"""A SentencePiece model in, the same ids out: on Mistral's vocabulary and on texts that its conversions differ in."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import pytest

pytest.importorskip("sentencepiece")

from scripts.sentencepiece_to_tokenizer import main
from simct_pl.tokenization.model_tokenizer import ModelTokenizer


def test_the_folder_loads_and_makes_the_librarys_ids(tmp_path: Path) -> None:
    from sentencepiece import SentencePieceProcessor

    try:
        files = importlib.metadata.files("mistral-common") or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("mistral-common is not installed")
    [source] = [str(file.locate()) for file in files if file.name == "tokenizer.model.v1"]
    texts = ["He runs.  How far?", "   three", "▁ and <0x41>", "1,234.50", "naïve 😀😀 東京"]
    (tmp_path / "texts.txt").write_text("\n".join(texts), encoding="utf-8")
    output = tmp_path / "tokenizer"
    arguments = ["--package", "mistral-common", "--file", "tokenizer.model.v1", "--output", str(output)]
    assert main([*arguments, "--check", str(tmp_path / "texts.txt")]) == 0

    tokenizer = ModelTokenizer.from_pretrained(str(output))
    assert [tokenizer.encode(text) for text in texts] == SentencePieceProcessor(model_file=source).encode(texts)
    assert tokenizer.hf.decode(tokenizer.encode("two  spaces")) == "two  spaces"
    assert (tokenizer.hf.bos_token, tokenizer.hf.eos_token, tokenizer.stop_ids) == ("<s>", "</s>", (2,))
