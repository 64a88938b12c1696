"""Tokens of one model in the tokens of the other: what the other writes for the same bytes.

In: ids of one side. Out: for each, the other side's ids, or None where it cannot spell those bytes. Which tokens are
text and have no column in the shared vocabulary is known here too.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence

import numpy as np

from simct_pl.tokenization.bytes import as_text
from simct_pl.tokenization.model_tokenizer import ModelTokenizer
from simct_pl.tokenization.shared_vocab import SharedVocab

# A text is spelt alone and, where that adds a dummy space, as the continuation of a line before it.
CONTEXTS = ("", "\n")


class Speller:
    """Spells one model's tokens as the other model's own tokenizer does.

    Args:
        own, other: the tokenizers of the side whose tokens are spelt, and of the side that spells them.
        shared_vocab: of the two; tokens whose bytes it holds are no business of this class.
    """

    def __init__(self, own: ModelTokenizer, other: ModelTokenizer, shared_vocab: SharedVocab) -> None:
        self.own, self.other = own.table, other.table
        # A copy: the alignment thread changes the settings of the tokenizer itself while it encodes.
        self._backend = copy.deepcopy(other.hf.backend_tokenizer)
        self._backend.encode_special_tokens = True
        self._known: dict[int, tuple[int, ...] | None] = {}
        self.unshared_ids_W = _unshared_ids(own, shared_vocab)

    def __call__(self, token_ids: Iterable[int]) -> list[tuple[int, ...] | None]:
        """The other side's spelling of each token; None for half a character, or for bytes that come back changed."""
        token_ids = list(token_ids)
        missing = sorted(set(token_ids) - self._known.keys())
        self._known |= dict.fromkeys(missing)
        texts = {token_id: text for token_id in missing if (text := as_text(self.own[token_id])) is not None}
        for context in CONTEXTS:
            before = self._encode([context])[0]
            open_ids = [token_id for token_id in texts if self._known[token_id] is None]
            for token_id, ids in zip(open_ids, self._encode([context + texts[i] for i in open_ids]), strict=True):
                spelling = ids[len(before) :]
                if ids[: len(before)] == before and self._spells(spelling, self.own[token_id]):
                    self._known[token_id] = tuple(spelling)
        return [self._known[token_id] for token_id in token_ids]

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def _spells(self, ids: list[int], data: bytes) -> bool:
        ids_N = np.asarray(ids, np.int64)
        usable = len(ids) > 0 and self.other.known(ids_N).all() and not self.other.is_special_V[ids_N].any()
        return bool(usable) and self.other.join(ids_N) == data


def _unshared_ids(own: ModelTokenizer, shared_vocab: SharedVocab) -> np.ndarray:
    """Ids that are text and whose bytes the other vocabulary does not hold as one token, int64, ascending."""
    table, shared = own.table, shared_vocab.column_of
    tokens, stops = table.tokens, own.found_stop_ids
    texts = np.flatnonzero(table.is_text_V).tolist()
    return np.asarray([i for i in texts if i not in stops and tokens[i] not in shared], np.int64)
