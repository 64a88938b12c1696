"""Which tokens a BPE tokenizer would merge across a cut: from its list of merges, without asking it.

In: the definition of a BPE tokenizer. Out: Merges, and Joints, which know where they can be trusted. A token that was
written ends a cut; a token behind it joins it if some merge reaches over the cut before both sides have grown into what
they are. Pairs of neighbours decide: a sequence of tokens is what BPE makes of its text exactly if no two neighbours
join (the tokenizer's pre-tokenizer aside, which is what Joints finds out by trying).
"""

from __future__ import annotations

import hashlib
import itertools
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

import numpy as np

from simct_pl.tokenization import cache
from simct_pl.tokenization.bytes import TokenBytes, as_text

FORMAT_VERSION = 2
NEVER = np.iinfo(np.int32).max  # rank of a merge that does not happen
_MEMORY = 4096
# Kinds of characters at a cut, as far as pre-tokenizers tell them apart; prefixed: another character and then a letter.
CHARACTERS = ("lower", "upper", "letter", "digit", "newline", "space", "other", "prefixed")
WHITE_SPACE = CHARACTERS.index("newline"), CHARACTERS.index("space")
CASELESS, DIGIT = CHARACTERS.index("letter"), CHARACTERS.index("digit")
_LEFT, _BEHIND = 30, 5  # tokens on both sides of a cut that are tried, for each pair of kinds
_ENOUGH = 40  # trials that a pair of kinds has to pass

Spell = Callable[[Sequence[str]], list[list[int]]]


@dataclass(frozen=True, eq=False)
class Merges:
    """How each token grows: the two tokens that it is merged from, -1 for what is no merge, and the merge's rank.

    left_K, right_K, rank_K: int64 [K]. pair_left_M, pair_right_M: every merge, in the order of ranks.
    """

    left_K: np.ndarray
    right_K: np.ndarray
    rank_K: np.ndarray
    pair_left_M: np.ndarray
    pair_right_M: np.ndarray

    @classmethod
    def of(cls, definition: str, num_ids: int) -> Merges | None:
        """definition: a tokenizer.json. None if it is no BPE, or drops merges at random."""
        model: dict[str, Any] = json.loads(definition)["model"]
        if model.get("type") != "BPE" or model.get("dropout"):
            return None
        vocab: dict[str, int] = model["vocab"]
        pairs = [pair if isinstance(pair, list) else pair.split(" ") for pair in model["merges"]]
        left_M, right_M = (np.array([vocab[pair[side]] for pair in pairs], np.int64) for side in (0, 1))
        made_M = np.array([vocab[one + other] for one, other in pairs], np.int64)
        left_K, right_K, rank_K = (np.full(num_ids, -1, np.int64) for _ in range(3))
        known, first_M, count = np.unique(made_M, return_index=True, return_counts=True)
        left_K[known], right_K[known], rank_K[known] = left_M[first_M], right_M[first_M], first_M
        ranks = {pair: rank for rank, pair in enumerate(zip(left_M.tolist(), right_M.tolist(), strict=True))}
        texts = {k: text for text, k in vocab.items()}
        for k in known[count > 1].tolist():  # several merges make it: which one is the last when it is read alone
            last = _last_merge(texts[k], vocab, ranks, made_M)
            rank_K[k] = -1 if last is None else last
            left_K[k], right_K[k] = (-1, -1) if last is None else (left_M[last], right_M[last])
        return cls(left_K, right_K, rank_K, left_M, right_M)

    def joining(self, token: int) -> np.ndarray:
        """Tokens that join one when they stand behind it, int64, sorted."""
        order, bounds_K = self._by_left
        starts_K, tokens, keys = self._beginning
        found, consumed = [], NEVER
        while token >= 0:
            ranks = order[bounds_K[token] : bounds_K[token + 1]]
            ranks = ranks[ranks < consumed]  # of equal merges the left one comes first
            begun = self.pair_right_M[ranks]
            # Of the tokens that begin with `begun`, those in which it is not merged with what follows it before that.
            end = np.searchsorted(keys, begun * (NEVER + 1) + (NEVER - ranks), "right")
            length = end - starts_K[begun]
            place = np.arange(length.sum()) + np.repeat(starts_K[begun] - np.cumsum(length) + length, length)
            found.append(tokens[place])
            consumed, token = int(self.rank_K[token]), int(self.right_K[token])
        return np.unique(np.concatenate(found))

    @property
    def _by_left(self) -> tuple[np.ndarray, np.ndarray]:
        return self._tables[0]

    @property
    def _beginning(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self._tables[1]

    @property
    def _tables(self) -> Any:
        return _tables_of(self)


@lru_cache(8)
def _tables_of(merges: Merges) -> Any:
    """(ranks by the left token of the merge and where each token's begin), (where the tokens that begin with each token
    lie, these tokens, their keys: what they begin with, and then the rank at which that grows, latest first).
    """
    num_ids = len(merges.left_K)
    order = np.argsort(merges.pair_left_M, kind="stable")
    bounds_K = np.searchsorted(merges.pair_left_M[order], np.arange(num_ids + 1))
    begun = token = np.arange(num_ids)
    parts = [(begun, token, np.full(num_ids, NEVER))]
    while len(begun):
        grows = merges.left_K[begun] >= 0
        rank, token, begun = merges.rank_K[begun[grows]], token[grows], merges.left_K[begun[grows]]
        parts.append((begun, token, rank))
    begun, token, rank = (np.concatenate(column) for column in zip(*parts, strict=True))
    keys = begun * (NEVER + 1) + (NEVER - rank)
    place = np.argsort(keys, kind="stable")
    starts_K = np.searchsorted(begun[place], np.arange(num_ids))
    return (order, bounds_K), (starts_K, token[place], keys[place])


def _last_merge(text: str, vocab: dict[str, int], ranks: dict[tuple[int, int], int], made_M: np.ndarray) -> int | None:
    """Rank of the merge that makes a token of its text; None if reading the text does not lead there."""
    if any(character not in vocab for character in text):
        return None
    parts, last = [vocab[character] for character in text], None
    while len(parts) > 1:
        found = [ranks.get(pair, NEVER) for pair in itertools.pairwise(parts)]
        last = min(found)
        if last == NEVER:
            return None
        at = found.index(last)
        parts[at : at + 2] = [int(made_M[last])]
    return last


@dataclass(frozen=True, eq=False)
class Joints:
    """What a tokenizer would merge, where its merges alone decide.

    joining: Merges.joining. rank_K: as in Merges. first_K, last_K: see edge_kinds. joins_trusted, apart_trusted: bool
    [kinds of the last character, kinds of the first one behind it]: whether all trials of tokens that join, and of
    tokens that do not, came out as the merges say. The trials are drawn with a fixed seed, half of them from the tokens
    that were made first, which are common.
    """

    joining: Callable[[int], np.ndarray]
    rank_K: np.ndarray
    first_K: np.ndarray
    last_K: np.ndarray
    joins_trusted: np.ndarray
    apart_trusted: np.ndarray

    @classmethod
    def of(
        cls, definition: str, table: TokenBytes, text_ids: Sequence[int], spell: Spell, fingerprint: str
    ) -> Joints | None:
        """From the disk if this tokenizer was tried before; a few seconds otherwise. None if it is no BPE."""
        names = [field.name for field in fields(Merges)]
        own = ("first_K", "last_K", "joins_trusted", "apart_trusted")
        key = hashlib.blake2b(f"{FORMAT_VERSION} {fingerprint} {definition}".encode(), digest_size=16).hexdigest()
        arrays = cache.load_arrays("joints", key, [*names, *own])
        if arrays is not None:
            return cls._by(Merges(*(arrays[name] for name in names)), *(arrays[name] for name in own))
        merges = Merges.of(definition, len(table))
        if merges is None:
            return None
        edges = edge_kinds(table, text_ids)
        apart, joined = _tried(merges, *edges, table, spell)
        found = cls._by(merges, *edges, joined, apart)
        arrays = {name: getattr(merges, name) for name in names} | {name: getattr(found, name) for name in own}
        cache.save_arrays("joints", key, arrays)
        return found

    @classmethod
    def _by(cls, merges: Merges, *known: np.ndarray) -> Joints:
        """known: first_K and what follows it."""
        return cls(lru_cache(_MEMORY)(merges.joining), merges.rank_K, *known)

    def within(self, kept: Sequence[int]) -> Joints:
        """The same of a tokenizer which cuts as this one does, and has some of its tokens alone.

        kept: their ids here, sorted; their places are their ids there, where one more stands for all others.
        """
        ids_K = np.array(kept, np.int64)

        def joining(token: int) -> np.ndarray:
            known = self.joining(kept[token]) if token < len(kept) else np.zeros(0, np.int64)
            return np.flatnonzero(members(ids_K, known))

        rank_K, first_K, last_K = (np.append(of[ids_K], -1) for of in (self.rank_K, self.first_K, self.last_K))
        return Joints(joining, rank_K, first_K, last_K, self.joins_trusted, self.apart_trusted)

    def known(self, last: int, tokens_E: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(tokens that join `last` when they stand behind it, tokens that do not), bool [E] each; in neither: it has to
        be tried. What follows decides about white space. Ids of -1 are in neither.
        """
        if self.last_K[last] < 0:
            nothing = np.zeros(len(tokens_E), bool)
            return nothing, nothing
        join_E, kind_E = members(tokens_E, self.joining(last)), self.first_kinds(tokens_E)
        trusted = np.append(self.joins_trusted[self.last_K[last]], False)
        trusted[list(WHITE_SPACE)] = False
        return join_E & trusted[kind_E], ~join_E & self.apart_kinds(int(self.last_K[last]))[kind_E]

    def first_kinds(self, tokens_E: np.ndarray) -> np.ndarray:
        """The kind of each token's first character; -1 for ids of -1."""
        return np.where(tokens_E < 0, -1, self.first_K[tokens_E])

    def apart_kinds(self, last_kind: int) -> np.ndarray:
        """By the kind of a token's first character, whether one that does not join what ends with `last_kind` is known
        to stay apart from it, bool; the last place is the kind -1.
        """
        if last_kind < 0:
            return np.zeros(len(CHARACTERS) + 1, bool)
        apart = np.append(self.apart_trusted[last_kind], False)
        if last_kind in WHITE_SPACE:
            apart[list(WHITE_SPACE)] = False
        return apart


def members(values_E: np.ndarray, sorted_values: np.ndarray) -> np.ndarray:
    """Whether each value is one of some sorted ones, bool [E]."""
    if not len(sorted_values):
        return np.zeros(len(values_E), bool)
    place_E = np.searchsorted(sorted_values, values_E)
    return sorted_values[np.minimum(place_E, len(sorted_values) - 1)] == values_E


def _tried(
    merges: Merges, first_K: np.ndarray, last_K: np.ndarray, table: TokenBytes, spell: Spell
) -> tuple[np.ndarray, np.ndarray]:
    """(apart_trusted, joins_trusted) of Joints."""
    rng, count = random.Random(0), len(CHARACTERS)
    pairs: list[tuple[int, int, bool]] = []
    for kind in range(count):
        lefts = _drawn(rng, np.flatnonzero(last_K == kind), _LEFT)
        for token in lefts:
            joining = merges.joining(token)
            for other in range(count):
                behind = np.flatnonzero(first_K == other)
                join = joining[first_K[joining] == other]
                drawn = {*_drawn(rng, behind, _BEHIND), *_drawn(rng, join, _BEHIND)}
                members = set(join.tolist())
                pairs += [(token, k, k in members) for k in sorted(drawn)]
    tokens = table.tokens
    ids = sorted({k for one, other, _ in pairs for k in (one, other)})
    alone = {k for k, found in zip(ids, _read(spell, [tokens[k] for k in ids]), strict=True) if found == [k]}
    pairs = [pair for pair in pairs if pair[0] in alone and pair[1] in alone]
    right, tried = np.zeros((2, 2, count, count), np.int64)
    read = _read(spell, [tokens[one] + tokens[other] for one, other, _ in pairs])
    for (one, other, joins), found in zip(pairs, read, strict=True):
        place = int(joins), last_K[one], first_K[other]
        tried[place] += 1
        right[place] += (found != [one, other]) == joins
    apart, joined = (tried >= _ENOUGH) & (right == tried)
    return apart, joined


def _read(spell: Spell, texts: list[bytes]) -> list[list[int]]:
    return spell([text.decode() for text in texts])


def _drawn(rng: random.Random, ids: np.ndarray, count: int) -> list[int]:
    """Some of the ids, half of them from the first tenth."""
    common = ids[: max(len(ids) // 10, count)].tolist()
    return sorted({k for of in (common, ids.tolist()) for k in rng.sample(of, min(count - count // 2, len(of)))})


def edge_kinds(table: TokenBytes, text_ids: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Kinds of each token's first and last character, as places in CHARACTERS, int64 [K].

    -1 for what is no text; behind an apostrophe pre-tokenizers know contractions.
    """
    first_K, last_K = (np.full(len(table), -1, np.int64) for _ in range(2))
    for k in text_ids:
        text = as_text(table.tokens[k])
        if text:
            first_K[k] = _first_kind(text)
            last_K[k] = -1 if "'" in text or "’" in text else _kind(text[-1])
    return first_K, last_K


def _first_kind(text: str) -> int:
    own = _kind(text[0])
    is_prefix = own == CHARACTERS.index("other") and text[1:2].isalpha()
    return CHARACTERS.index("prefixed") if is_prefix else own


@lru_cache(100_000)
def _kind(character: str) -> int:
    if character.isalpha():
        name = "lower" if character.islower() else "upper" if character.isupper() else "letter"
    elif character.isdigit():
        name = "digit"
    else:
        name = "newline" if character in "\r\n" else "space" if character.isspace() else "other"
    return CHARACTERS.index(name)
