"""Tokenizers of each family, small enough to read, built from hand-written vocabularies."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

WORDS = ("hello", "hap", "py", "world", "the", "12", "123")
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# The same with tools, in front; an assistant's calls; and results under the role tool.
CHATML_TOOLS = (
    "{% if tools %}<|im_start|>tools\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}"
) + CHATML.replace(
    "{{ m.content }}",
    "{{ m.content }}{% for call in m.tool_calls or [] %}<call>{{ call.function.name }} "
    "{{ call.function.arguments | tojson }}</call>{% endfor %}",
)


def chain(word: str) -> list[tuple[str, str]]:
    """Merges that build a word from the left, one character at a time."""
    return [(word[:end], word[end]) for end in range(1, len(word))]


def byte_level(
    words: Sequence[str] = WORDS,
    special: Sequence[str] = ("<|im_start|>", "<|im_end|>", "<|endoftext|>"),
    added: Sequence[str] = ("<think>",),
    normalizer: normalizers.Normalizer | None = None,
    eos: str | None = "<|endoftext|>",
    chat_template: str | None = None,
    add_prefix_space: bool = False,
) -> PreTrainedTokenizerFast:
    """Byte-level BPE, as GPT-2, Llama-3 and Qwen have it."""
    spelled = [("Ġ" if spaced else "") + word for word in words for spaced in (False, True)]
    merges = list(dict.fromkeys(merge for word in spelled for merge in chain(word)))
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *dict.fromkeys("".join(merge) for merge in merges)]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in added])
    hf = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=eos)
    hf.chat_template = chat_template
    return hf


def sentencepiece_vocabulary(words: Sequence[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Unknown, stops, 256 fallback bytes, printable characters, words with and without a leading space."""
    merges = list(dict.fromkeys(merge for word in words for w in (word, "▁" + word) for merge in chain(w)))
    characters = ["▁", *(chr(code) for code in range(33, 127)), "é"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *characters]
    tokens += dict.fromkeys("".join(merge) for merge in merges)
    return {token: i for i, token in enumerate(tokens)}, merges


def sentencepiece_bpe(
    words: Sequence[str] = WORDS, style: str = "prepend", added: Sequence[str] = (), eos: str | None = "</s>"
) -> PreTrainedTokenizerFast:
    """BPE with byte fallback. style: how the dummy space gets in front: prepend | metaspace | none (Gemma)."""
    vocab, merges = sentencepiece_vocabulary(words)
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if style == "prepend":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    elif style == "metaspace":
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    else:
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in ("<unk>", "<s>", "</s>")])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in added])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=eos, bos_token="<s>", unk_token="<unk>")


def unigram(normalizer: normalizers.Normalizer | None = None, byte_fallback: bool = True) -> PreTrainedTokenizerFast:
    """Unigram with Metaspace, as T5 or mT5; without byte fallback a character it lacks is unknown."""
    vocab, _ = sentencepiece_vocabulary(WORDS)
    scores = [(token, -1.0 - 10.0 / len(token.encode())) for token in vocab]
    tokenizer = Tokenizer(models.Unigram(scores, unk_id=0, byte_fallback=byte_fallback))
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>")


def wordpiece() -> PreTrainedTokenizerFast:
    """BERT's family, whose tokens have no exact bytes."""
    tokenizer = Tokenizer(models.WordPiece(vocab={"[UNK]": 0, "he": 1, "##llo": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)
