"""A sparse projection of one vocabulary into another, from how the second tokenizer spells the first one's tokens.

In: two byte tables, and the second tokenizer. Out: TokenProjection, W [K, J] as lists of its entries (X-Token,
arXiv 2605.21699, section 3). A token that both have goes to its like; one that is spelt with several pieces is spread
over them; a token whose bytes are no text of their own goes nowhere and is counted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from simct_pl.errors import RecipeError
from simct_pl.tokenization.bytes import as_text
from simct_pl.tokenization.model_tokenizer import ModelTokenizer
from simct_pl.tokenization.pair import TokenizerPair
from simct_pl.tokenization.shared_vocab import SharedVocab

Spell = Callable[[Sequence[str]], list[list[int]]]


@dataclass(frozen=True)
class TokenProjection:
    """Entries of W, sorted by source.

    source_E, target_E: int64, ids of the student and of the teacher. weight_E: float64 in (0, 1]; a source's weights
    add up to 1. is_like_E: bool, whether source and target are the two ids of a shared column; a twin of such a source
    (a byte fallback, a further stop) goes to the same target and is none. num_unmapped: source tokens with bytes that
    have no entry.
    """

    source_E: np.ndarray
    target_E: np.ndarray
    weight_E: np.ndarray
    is_like_E: np.ndarray
    num_unmapped: int

    @classmethod
    def of_pair(cls, pair: TokenizerPair, decay: float) -> TokenProjection:
        """From the student's vocabulary into the teacher's; see build."""
        return cls.build(pair.shared_vocab, lambda texts: spell_inside(pair.teacher, texts), decay)

    @classmethod
    def build(cls, shared: SharedVocab, spell: Spell, decay: float) -> TokenProjection:
        """spell: the teacher's ids of texts that stand inside a response. decay: the weight of a piece, as a share of
        that of the piece before it; 1 weighs all pieces alike, so that `202` gives two thirds to `2`.

        Raises:
            RecipeError: if decay is not in (0, 1].
        """
        if not 0 < decay <= 1:
            raise RecipeError(f"decay is {decay}; expected more than 0 and at most 1.")
        pieces = spell_tokens(shared, spell)
        is_plain_K = shared.student.is_mapped_V & ~shared.student.is_special_V
        num_unmapped = len(set(np.flatnonzero(is_plain_K).tolist()) - pieces.keys())
        return cls._of_pieces(pieces, decay, shared.student_ids_V, num_unmapped)

    @classmethod
    def _of_pieces(
        cls, pieces: dict[int, list[int]], decay: float, likes: np.ndarray, num_unmapped: int
    ) -> TokenProjection:
        sources, targets, weights = [np.empty(0, np.int64)], [np.empty(0, np.int64)], [np.empty(0)]
        for source in sorted(pieces):
            own = decay ** np.arange(len(pieces[source]))
            # A piece that stands twice in a spelling is one entry with both weights.
            found, place = np.unique(pieces[source], return_inverse=True)
            sources.append(np.full(len(found), source))
            targets.append(found)
            weights.append(np.bincount(place, own) / own.sum())
        source_E = np.concatenate(sources)
        is_like_E = np.isin(source_E, likes)
        return cls(source_E, np.concatenate(targets), np.concatenate(weights), is_like_E, num_unmapped)


def spell_tokens(shared: SharedVocab, spell: Spell) -> dict[int, list[int]]:
    """The teacher's ids of each student token that has a text, by the student's id; of the stops too.

    A token that both have is its like, and so is an id beside a shared one (a byte fallback, a duplicate).
    """
    # First what both have: a token's like in the teacher, the stops included.
    tokens, columns_K = shared.student.tokens, shared.student_columns
    pieces = {int(k): [int(shared.teacher_ids_V[columns_K[k]])] for k in np.flatnonzero(columns_K >= 0)}
    is_special_K = shared.student.is_special_V
    # Then ids with the bytes of a shared token that are not its column's own: they go where that one goes.
    others = [k for k in range(len(tokens)) if k not in pieces and tokens[k] and not is_special_K[k]]
    twins = {k: column for k in others if (column := shared.column_of.get(tokens[k])) is not None}
    pieces |= {k: [int(shared.teacher_ids_V[column])] for k, column in twins.items()}
    # All others are spelt by the teacher's tokenizer, if their bytes are a text by themselves.
    texts = {k: text for k in others if k not in twins and (text := as_text(tokens[k])) is not None}
    spelt = zip(texts, spell(list(texts.values())), strict=True)
    # A tokenizer that rewrites a text has not spelt it.
    return pieces | {k: ids for k, ids in spelt if ids and shared.teacher.join(ids) == tokens[k]}


def spell_inside(tokenizer: ModelTokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Ids of each text as it would stand in the middle of a line: without the dummy space of a beginning."""
    if not tokenizer.table.dummy_prefix:
        return tokenizer.encode_batch(texts)
    # The dummy space goes before the line break, whose ids are then cut off.
    before = tokenizer.encode("\n")
    return [ids[len(before) :] for ids in tokenizer.encode_batch(["\n" + text for text in texts])]
