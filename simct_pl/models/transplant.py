"""Put a model's body on another family's tokenizer: two byte tables in, embedding and head rows for the new one out.

A new token's row is the mean of the old rows of the pieces that the old tokenizer makes of the token's bytes (fast
vocabulary transfer, arXiv 2402.09977), so a token with equal bytes keeps its row bit for bit. Left out: any training.
The result is a student that starts from what its body knew, for pairs in which no ready model has the tokenizer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from simct_pl.tokenization.bytes import TokenBytes, as_text

Encode = Callable[[list[str]], list[list[int]]]

# For a tokenizer without a template whose model's own one cannot be carried over. Needs no token but the stop.
PLAIN_CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] | capitalize + ': ' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


class RowSource(StrEnum):
    """Where a new row comes from."""

    EXACT = "exact"  # an old token with the same bytes
    COMPOSED = "composed"  # the mean over the old pieces of the token's bytes
    ROLE = "role"  # the old special token with the same role (stop, beginning of text)
    FALLBACK = "fallback"  # the mean of all old rows: control tokens without a role, twins, bytes the old one lacks


@dataclass(frozen=True)
class RowPlan:
    """The old ids behind each new row.

    pieces: int64 [P], the old ids of all rows one after another.
    starts_V: int64 [V], where each row's pieces start; a row without pieces is a fallback.
    sources: [V], how each row was found.
    """

    pieces: np.ndarray
    starts_V: np.ndarray
    sources: tuple[RowSource, ...]

    @classmethod
    def from_pieces(cls, pieces: Sequence[Sequence[int]], sources: Sequence[RowSource]) -> RowPlan:
        lengths = np.fromiter(map(len, pieces), dtype=np.int64, count=len(pieces))
        flat = np.fromiter((piece for row in pieces for piece in row), dtype=np.int64, count=int(lengths.sum()))
        return cls(flat, np.cumsum(lengths) - lengths, tuple(sources))

    def count(self, source: RowSource) -> int:
        return self.sources.count(source)

    def rows(self, old_rows_RH: Tensor) -> Tensor:
        """Return the new rows [V, H], in the dtype of the old ones; means are taken in float32."""
        rows_RH = old_rows_RH.float()
        pieces, starts_V = torch.from_numpy(self.pieces), torch.from_numpy(self.starts_V)
        # The mean of each row's pieces, all rows in one call; a row without pieces comes out as zeros and is filled
        # below.
        new_rows_VH = F.embedding_bag(pieces, rows_RH, starts_V, mode="mean")
        is_fallback_V = torch.tensor([source is RowSource.FALLBACK for source in self.sources])
        new_rows_VH[is_fallback_V] = rows_RH.mean(dim=0)
        return new_rows_VH.to(old_rows_RH.dtype)


def plan_rows(new: TokenBytes, old: TokenBytes, encode: Encode, roles: Mapping[int, int]) -> RowPlan:
    """Find the old ids behind each new token.

    Only one id of several with the same bytes gets their row, the one that the tokenizer itself makes: with the same
    row, a byte-fallback twin would be sampled as often as the token it is the twin of.

    Args:
        new, old: byte tables of the two tokenizers.
        encode: the old tokenizer on a batch of texts, without special tokens.
        roles: new special id → old special id that does the same.
    """
    old_ids, new_ids = old.ids_by_bytes(), new.ids_by_bytes()
    pieces: list[list[int]] = [[] for _ in range(len(new))]
    sources = [RowSource.FALLBACK] * len(new)
    unmatched = []
    # Cheapest first: a special token's role, then an old token of the same bytes. What is left is spelt in one batch.
    for new_id in range(len(new)):
        if new_id in roles:
            pieces[new_id], sources[new_id] = [roles[new_id]], RowSource.ROLE
        elif new_ids.get(new[new_id]) == new_id:
            same = old_ids.get(new[new_id])
            if same is None:
                unmatched.append(new_id)
            else:
                pieces[new_id], sources[new_id] = [same], RowSource.EXACT
    for new_id, composed in zip(unmatched, compose([new[i] for i in unmatched], old, old_ids, encode), strict=True):
        if composed:
            pieces[new_id], sources[new_id] = composed, RowSource.COMPOSED
    return RowPlan.from_pieces(pieces, sources)


def compose(
    texts: Sequence[bytes], old: TokenBytes, old_ids: Mapping[bytes, int], encode: Encode
) -> Iterable[list[int]]:
    """Yield, for each text, old ids whose bytes are that text; [] when the old vocabulary cannot spell it.

    The old tokenizer decides where its ids spell exactly the text. It does not for pieces of a character, nor where it
    adds a space or rewrites; there the longest old token that fits is taken, again and again.
    """
    decoded = [as_text(text) for text in texts]
    encoded = iter(encode([text for text in decoded if text is not None]))
    longest = max(map(len, old_ids), default=0)
    for text, is_text in zip(texts, (text is not None for text in decoded), strict=True):
        # Only texts were encoded, so their spellings are taken off in turn.
        ids = next(encoded) if is_text else []
        yield ids if old.join(ids) == text else longest_match(text, old_ids, longest)


def longest_match(text: bytes, old_ids: Mapping[bytes, int], longest: int) -> list[int]:
    """Spell a text with the longest old token at each place; [] when a place has none."""
    ids = []
    start = 0
    while start < len(text):
        ends = range(min(len(text), start + longest), start, -1)
        end = next((end for end in ends if text[start:end] in old_ids), None)
        if end is None:
            return []
        ids.append(old_ids[text[start:end]])
        start = end
    return ids


def replace_vocabulary(model: PreTrainedModel, plan: RowPlan, old_size: int) -> None:
    """Give a model the plan's rows, in place: embedding, and the head with its bias where it is not tied.

    Args:
        old_size: number of tokens of the old tokenizer; rows beyond it are padding and enter no mean.
    """
    old_tables = vocabulary_tables(model)
    with torch.no_grad():
        # A bias has one number a token: as rows of width one it takes the same way.
        # Made before the tables are resized, which throws the old rows away.
        rows = [plan.rows(table[:old_size].view(old_size, -1)) for table in old_tables]
        model.resize_token_embeddings(len(plan.sources), mean_resizing=False)
        for table, new_rows_VH in zip(vocabulary_tables(model), rows, strict=True):
            table.copy_(new_rows_VH.view_as(table))


def vocabulary_tables(model: PreTrainedModel) -> list[Tensor]:
    """Return every parameter with one row a token: the embedding, the head unless it is tied, the head's bias."""
    embedding, head = cast(nn.Embedding, model.get_input_embeddings()), cast(nn.Linear, model.get_output_embeddings())
    candidates = [embedding.weight, *head.parameters(recurse=False)]
    return list({id(table): table for table in candidates}.values())


def carry_chat_template(
    old: PreTrainedTokenizerFast, new: PreTrainedTokenizerFast, renamed: Mapping[str, str]
) -> tuple[str, str]:
    """Return (template, where it comes from) for the new tokenizer, the first of these that there is.

    1. "tokenizer": its own. 2. "model": the old one with its special tokens `renamed`, which keeps the format that the
    body was trained on; only if no other old special token is left in it. 3. "plain": PLAIN_CHAT_TEMPLATE.
    """
    if new.chat_template:
        return new.chat_template, "tokenizer"
    template = old.chat_template or ""
    for before, after in renamed.items():
        template = template.replace(before, after)
    left_over = set(old.all_special_tokens) - set(renamed.values())
    if template and not any(token in template for token in left_over):
        return template, "model"
    return PLAIN_CHAT_TEMPLATE, "plain"
