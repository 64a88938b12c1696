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
from simct_pl.tokenization.readings import FOLLOWING, kind

LONGEST_TOKEN = 40  # bytes; longer ones are runs of one character


class ListedTokenizer(ModelTokenizer):
    """A tokenizer that is its table and what reads a text; it has a stop, and no chat template.

    Args:
        table: its last id is that of all tokens which are not in the list, and has no bytes.
        read: ids of some texts.
        stop_id: the id that ends a response.
        name: how errors call it.
    """

    def __init__(
        self, table: TokenBytes, read: Callable[[Sequence[str]], list[list[int]]], stop_id: int, name: str
    ) -> None:
        self.table, self.name, self.found_stop_ids = table, name, (stop_id,)
        self.template: dict[str, object] = {}
        self._read = read

    @override
    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return self._read(texts)

    @property
    @override
    def definition(self) -> None:
        """It has no rules that could be read."""

    @cached_property
    @override
    def fingerprint(self) -> str:
        return self.table.fingerprint


def cut_down(tokenizer: ModelTokenizer, texts: Collection[str]) -> ListedTokenizer:
    """A tokenizer that cuts as this one does, with the tokens that lie within some texts, and the first stop.

    Raises:
        MissingStopTokenError: if the tokenizer has no stop.
    """
    table, stop_id = tokenizer.table, tokenizer.stop_ids[0]
    within = {part for text in texts for part in _parts(text.encode())}
    is_within = [token in within for token in table.tokens]
    spelt = {token_id for ids in tokenizer.encode_batch(list(texts)) for token_id in ids}
    kept_ids = spelt | {stop_id} | set(np.flatnonzero(np.array(is_within) & table.is_text_V).tolist())
    # Objectives that read a token in front of a character of another kind must find what they read in the list.
    tokens = [text for token_id in kept_ids if (text := as_text(table[token_id] or b""))]
    read_on = [text + following for text in tokens for following in FOLLOWING if kind(text[-1]) != kind(following)]
    found = kept_ids.union(*tokenizer.encode_batch(read_on))
    kept = sorted(token_id for token_id in found if table.is_mapped_V[token_id])
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
    return ListedTokenizer(small, read, new_id[stop_id], tokenizer.name)


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
