"""The rules that turn a vocabulary entry into bytes, one per tokenizer family.

In: the text of a tokenizer.json. Out: bytes per id. The family is read from the pipeline, never guessed from the
tokens:
    byte-level (GPT-2, Llama-3, Qwen): inverse of the GPT-2 byte map; ADDED tokens are the UTF-8 of their content
    SentencePiece-like (Llama-2, Mistral, Gemma): `<0xHH>` is one byte, `▁` is a space, in added tokens too
WordPiece, WordLevel and word-end-suffix BPE throw away spaces, so their tokens have no exact bytes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from simct_pl.errors import UnsupportedTokenizerError

_FALLBACK = re.compile(r"<0x([0-9A-F]{2})>")
_REMEDY = "Use a model with a byte-level BPE or SentencePiece-like tokenizer (GPT-2, Llama, Qwen, Gemma, Mistral, …)."


@dataclass(frozen=True)
class ReadTokens:
    """What a tokenizer.json says about its tokens; the fields are those of TokenBytes."""

    tokens: list[bytes | None]
    special_ids: set[int]
    fallback_ids: set[int]
    dummy_prefix: bool


def read_token_bytes(definition: str) -> ReadTokens:
    """Bytes of every id of a tokenizer.json.

    Raises:
        UnsupportedTokenizerError: if the tokenizer's tokens have no exact bytes.
    """
    pipeline = json.loads(definition)
    model = pipeline["model"]
    vocabulary = _vocabulary(model)
    if not vocabulary and not pipeline["added_tokens"]:
        raise UnsupportedTokenizerError(f"This tokenizer has no tokens. {_REMEDY}")
    to_bytes, added_to_bytes, fallback_ids = _family(pipeline, vocabulary)

    # Added tokens come after the vocabulary: what they say of an id replaces what it says.
    added = {entry["id"]: entry for entry in pipeline["added_tokens"]}
    tokens: list[bytes | None] = [None] * (1 + max([*vocabulary.values(), *added]))
    for token, token_id in vocabulary.items():
        tokens[token_id] = to_bytes(token)
    for token_id, entry in added.items():
        tokens[token_id] = added_to_bytes(entry["content"])
        fallback_ids.discard(token_id)
    special_ids = {token_id for token_id, entry in added.items() if entry["special"]}
    unknown_id = _unknown_id(model, vocabulary)
    if unknown_id is not None:  # whatever it stands for, it is not what it spells
        special_ids.add(unknown_id)
    return ReadTokens(tokens, special_ids, fallback_ids, has_dummy_prefix(pipeline))


def _vocabulary(model: dict[str, Any]) -> dict[str, int]:
    if isinstance(model["vocab"], dict):
        return model["vocab"]
    return {token: token_id for token_id, (token, _) in enumerate(model["vocab"])}


def _unknown_id(model: dict[str, Any], vocabulary: dict[str, int]) -> int | None:
    if model["type"] == "Unigram":
        return model["unk_id"]
    return vocabulary.get(model["unk_token"])


def _steps(step: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    """A normalizer, pre-tokenizer or decoder and, if it is a sequence, everything in it."""
    if step is None:
        return
    if step["type"] == "Sequence":
        for key in ("normalizers", "pretokenizers", "decoders"):
            for inner in step.get(key, ()):
                yield from _steps(inner)
    else:
        yield step


def _family(
    pipeline: dict[str, Any], vocabulary: dict[str, int]
) -> tuple[Callable[[str], bytes | None], Callable[[str], bytes], set[int]]:
    """(bytes of a vocabulary entry, bytes of an added token's content, ids of byte-fallback tokens)."""
    model = pipeline["model"]
    if model["type"] not in ("BPE", "Unigram"):
        raise UnsupportedTokenizerError(f"{model['type']} tokens have no exact bytes: spaces are lost. {_REMEDY}")
    if model.get("end_of_word_suffix") or model.get("continuing_subword_prefix"):
        raise UnsupportedTokenizerError(f"BPE with word affixes has no exact bytes: spaces are lost. {_REMEDY}")
    steps = [*_steps(pipeline["normalizer"]), *_steps(pipeline["pre_tokenizer"]), *_steps(pipeline["decoder"])]
    kinds = {step["type"] for step in steps}
    # The vocabulary is written in GPT-2's stand-ins for bytes; added tokens are plain text.
    if "ByteLevel" in kinds:
        return _byte_level, str.encode, set()
    # SentencePiece-like: plain text with a mark for the space, and perhaps tokens for single bytes.
    space = _space_mark(steps)
    if space is None and "ByteFallback" not in kinds:
        raise UnsupportedTokenizerError(
            f"A {model['type']} tokenizer that is neither byte-level nor SentencePiece-like has no exact bytes "
            f"(pipeline: {sorted(kinds)}). {_REMEDY}"
        )

    def plain(token: str) -> bytes:
        return (token.replace(space, " ") if space else token).encode()

    if not (model.get("byte_fallback") or "ByteFallback" in kinds):
        return plain, plain, set()

    def with_fallback(token: str) -> bytes:
        match = _FALLBACK.fullmatch(token)
        return bytes.fromhex(match[1]) if match else plain(token)

    return with_fallback, plain, {token_id for token, token_id in vocabulary.items() if _FALLBACK.fullmatch(token)}


def _space_mark(steps: list[dict[str, Any]]) -> str | None:
    """The character that stands for a space, `▁` as a rule."""
    for step in steps:
        if step["type"] == "Metaspace":
            return step["replacement"]
        if step["type"] == "Replace":
            pattern = step["pattern"].get("String")
            if pattern == " " and step["content"]:  # a normalizer
                return step["content"]
            if step["content"] == " " and pattern:  # a decoder
                return pattern
    return None


def has_dummy_prefix(pipeline: dict[str, Any]) -> bool:
    """Whether encoding puts a space in front of the text."""
    for step in [*_steps(pipeline["normalizer"]), *_steps(pipeline["pre_tokenizer"])]:
        if step["type"] == "Prepend" and step["prepend"]:
            return True
        if step["type"] == "Metaspace" and step.get("prepend_scheme", "always") != "never":
            return True
        if step["type"] == "ByteLevel" and step.get("add_prefix_space"):
            return True
    return False


def _byte_map() -> dict[str, int]:
    """GPT-2's stand-in of each byte: itself if printable in Latin-1, else the next character from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(hidden)}


_BYTE_OF = _byte_map()
_TO_LATIN1 = {ord(char): byte for char, byte in _BYTE_OF.items()}


def _byte_level(token: str) -> bytes | None:
    try:
        return token.translate(_TO_LATIN1).encode("latin-1")
    except UnicodeEncodeError:  # a character outside the byte map: no text can produce this entry
        return None
