"""Tokenizers of few tokens, so that a model may be a table: real ones cut down to some texts, and toy ones.

In: a tokenizer and texts, or a list of tokens. Out: ListedTokenizer, which a TokenizerPair takes for any other.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np
from typing_extensions import override

from simct_pl.tokenization.bytes import TokenBytes, as_text
from simct_pl.tokenization.model_tokenizer import ModelTokenizer
from simct_pl.tokenization.readings import Reader, followings

LONGEST_TOKEN = 40  # bytes; longer ones are runs of one character


class ListedTokenizer(ModelTokenizer):
    """A tokenizer that is its table and what reads a text; it has a stop, and no chat template.

    Args:
        table: its last id is that of all tokens which are not in the list, and has no bytes.
        read: ids of some texts.
        stop_id: the id that ends a response.
        name: how errors call it.
        cut_from: what it was cut down from, which tells what would be merged, and the ids of its tokens there.
    """

    def __init__(
        self,
        table: TokenBytes,
        read: Callable[[Sequence[str]], list[list[int]]],
        stop_id: int,
        name: str,
        cut_from: tuple[ModelTokenizer, list[int]] | None = None,
    ) -> None:
        self.table, self.name, self.found_stop_ids, self.cut_from = table, name, (stop_id,), cut_from
        self.template: dict[str, object] = {}
        self._read = read

    @override
    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return self._read(texts)

    @property
    @override
    def definition(self) -> None:
        """It has no rules of its own that could be read."""

    @cached_property
    @override
    def fingerprint(self) -> str:
        return self.table.fingerprint


def cut_down(tokenizers: Sequence[ModelTokenizer], texts: Collection[str]) -> list[ListedTokenizer]:
    """Tokenizers that cut as these do, with few of their tokens: those that lie within some texts, the first stop, and
    what any of them makes of such a token of any, alone and in front of what may follow it.

    Raises:
        MissingStopTokenError: if one has no stop.
    """
    kept = [_within(tokenizer, texts) for tokenizer in tokenizers]
    # Objectives that read one side's tokens with the other's tokenizer must find what they read in the list.
    asked = set[str]()
    for tokenizer, ids in zip(tokenizers, kept, strict=True):
        reader = Reader.of(tokenizer)
        read = (
            reader.table.tokens[k] + after for k in ids.intersection(reader.text_ids) for after in followings(reader, k)
        )
        asked.update(text for data in read if (text := as_text(data)))
    return [
        _listed(tokenizer, ids.union(*tokenizer.encode_batch(sorted(asked))))
        for tokenizer, ids in zip(tokenizers, kept, strict=True)
    ]


def _within(tokenizer: ModelTokenizer, texts: Collection[str]) -> set[int]:
    """Tokens that lie within some texts, and the first stop."""
    table = tokenizer.table
    within = {part for text in texts for part in _parts(text.encode())}
    is_within_V = np.array([token in within for token in table.tokens]) & table.is_text_V
    spelt = {token_id for ids in tokenizer.encode_batch(list(texts)) for token_id in ids}
    return spelt | {tokenizer.stop_ids[0]} | set(np.flatnonzero(is_within_V).tolist())


def _listed(tokenizer: ModelTokenizer, ids: Collection[int]) -> ListedTokenizer:
    """The tokenizer with some of its tokens."""
    table = tokenizer.table
    kept = sorted(token_id for token_id in ids if table.is_mapped_V[token_id])
    new_id = {token_id: i for i, token_id in enumerate(kept)}
    small = TokenBytes.from_list(
        [*(table[token_id] for token_id in kept), None],
        [i for i, token_id in enumerate(kept) if table.is_special_V[token_id]],
        [i for i, token_id in enumerate(kept) if table.is_fallback_V[token_id]],
        table.dummy_prefix,
    )

    def read(some: Sequence[str]) -> list[list[int]]:
        return [[new_id.get(token_id, len(kept)) for token_id in ids] for ids in tokenizer.encode_batch(some)]

    # Two tokenizers may share all tokens within some texts, and cut differently.
    small = replace(small, fingerprint=f"{table.fingerprint}/{small.fingerprint}")
    return ListedTokenizer(small, read, new_id[tokenizer.stop_ids[0]], tokenizer.name, (tokenizer, kept))


def _parts(text: bytes) -> set[bytes]:
    """All stretches of a text that a token might be."""
    starts = range(len(text))
    return {text[start:end] for start in starts for end in range(start + 1, min(len(text), start + LONGEST_TOKEN) + 1)}


def longest_match(tokens: Sequence[bytes], name: str) -> ListedTokenizer:
    """A toy: reads the longest of its tokens that begins what is left of a text, again and again."""
    unique = sorted(set(tokens))
    id_of = {token: i for i, token in enumerate(unique)}
    longest = max(map(len, unique))

    def read_one(text: bytes) -> list[int]:
        ids, start = [], 0
        while start < len(text):
            ends = (end for end in range(min(len(text), start + longest), start, -1) if text[start:end] in id_of)
            end = next(ends, None)
            ids.append(len(unique) + 1 if end is None else id_of[text[start:end]])
            start = start + 1 if end is None else end
        return ids

    table = TokenBytes.from_list([*unique, b"<stop>", None], special_ids=[len(unique)])
    return ListedTokenizer(table, lambda texts: [read_one(text.encode()) for text in texts], len(unique), name)
