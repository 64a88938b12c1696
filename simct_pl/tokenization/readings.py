"""How each of two tokenizers reads every token of the other: made once a pair, and kept on disk.

In: two readers. Out: Readings, one for each direction: for each token the ids in which the other tokenizer spells it,
alone and in front of a character of another kind, since what follows decides some cuts (four spaces are one token in
front of `#`, and three of them in front of ` return`). A token that ends inside a character is read with that character
completed. Everything a step asks beside this is local to a position (simct_pl.losses.token_paths).
"""

from __future__ import annotations

import gc
import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from simct_pl.progress import progress
from simct_pl.tokenization import cache
from simct_pl.tokenization.bytes import TokenBytes, as_text
from simct_pl.tokenization.merges import Joints, Spell
from simct_pl.tokenization.model_tokenizer import ModelTokenizer
from simct_pl.tokenization.projection import spell_inside

FORMAT_VERSION = 2
# What may follow a token: letters of both cases, a digit, white space, punctuation.
FOLLOWING = ("r", "T", "2", " ", "\n", "#", ",")
# What may follow punctuation besides: tokenizers group it in ways that the token alone does not show.
_PUNCTUATION = (".", ",", ")", ":", ">", '"', "=", "*")
# Last bytes that complete a character: all where one byte is missing would be 64; a few tell how such tokens are cut.
_CONTINUATIONS = tuple(range(0x80, 0xC0, 3))
BATCH = 20_000  # texts between two steps of the progress bar


@contextmanager
def without_collecting() -> Iterator[None]:
    """Let Python look for no cycles meanwhile: among a hundred thousand new lists it would look again and again at all
    that a process holds, which takes as long as reading the texts.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@dataclass(frozen=True, eq=False)
class Reader:
    """A tokenizer as something that cuts texts: its table, its stops, and its ids of texts inside a response.

    definition: its tokenizer.json, if it has one. cut_from: see ModelTokenizer.
    """

    table: TokenBytes
    stop_ids: tuple[int, ...]
    spell: Spell
    fingerprint: str
    definition: str | None = None
    cut_from: tuple[Reader, list[int]] | None = None

    @classmethod
    @lru_cache(8)
    def of(cls, tokenizer: ModelTokenizer) -> Reader:
        """One for each tokenizer: what is found out about it is."""
        return cls(
            tokenizer.table,
            tokenizer.found_stop_ids,
            lambda texts: spell_inside(tokenizer, texts),
            tokenizer.fingerprint,
            tokenizer.definition,
            tokenizer.cut_from and (cls.of(tokenizer.cut_from[0]), tokenizer.cut_from[1]),
        )

    def read(self, texts: Sequence[bytes]) -> list[list[int] | None]:
        """Ids of each text; None where it is no text (half a character), or where the tokenizer rewrites it."""
        readable = [(i, text) for i, data in enumerate(texts) if data and (text := as_text(data)) is not None]
        found: list[list[int] | None] = [None] * len(texts)
        if not readable:
            return found
        with without_collecting():
            read = self.spell([text for _, text in readable])
        # Of all texts at once, since there are millions: their ids, the bytes of these, and where each text's end.
        ends = np.cumsum([0, *map(len, read)])
        ids_N = np.fromiter(itertools.chain.from_iterable(read), np.int64, ends[-1])
        spelled, byte_ends_N = self.table.gather(ids_N)
        edges = np.append(0, byte_ends_N)[ends].tolist()
        odd_N = np.append(0, np.cumsum(~self.table.is_text_V[ids_N]))
        is_plain = (odd_N[ends[1:]] == odd_N[ends[:-1]]).tolist()
        for (i, _), ids, plain, (start, end) in zip(readable, read, is_plain, itertools.pairwise(edges), strict=True):
            if plain and spelled[start:end] == texts[i]:
                found[i] = ids
        return found

    @cached_property
    def joints(self) -> Joints | None:
        """What it would merge, as far as its merges tell; None if it has none."""
        if self.cut_from is not None:
            whole, kept = self.cut_from
            return None if whole.joints is None else whole.joints.within(kept)
        if self.definition is None:
            return None
        return Joints.of(self.definition, self.table, self.text_ids, self.spell, self.fingerprint)

    @cached_property
    def text_ids(self) -> list[int]:
        """Ids that stand for text, in order."""
        is_text_V = self.table.is_text_V.copy()
        is_text_V[list(self.stop_ids)] = False
        return np.flatnonzero(is_text_V).tolist()


@dataclass(frozen=True, eq=False)
class Readings:
    """Spellings of one side's tokens by the other tokenizer, sorted by spelling and then by token.

    source_E: int64, the token. offsets: int64 [E + 1]; spelling e is ids[offsets[e]:offsets[e + 1]], cut behind the
    token that reaches the end of the source. A token has one entry for each different spelling, and none if it has no
    text.
    """

    source_E: np.ndarray
    offsets: np.ndarray
    ids: np.ndarray

    @cached_property
    def spellings(self) -> list[tuple[int, ...]]:
        flat, edges = self.ids.tolist(), self.offsets.tolist()
        return [tuple(flat[start:end]) for start, end in itertools.pairwise(edges)]

    @cached_property
    def sources(self) -> list[int]:
        return self.source_E.tolist()

    @cached_property
    def first_E(self) -> np.ndarray:
        """First id of each spelling."""
        return self.ids[self.offsets[:-1]]

    @cached_property
    def _edges(self) -> dict[int, tuple[int, int]]:
        firsts, starts = np.unique(self.first_E, return_index=True)
        ends = np.append(starts, len(self.first_E))[1:]
        return dict(zip(firsts.tolist(), zip(starts.tolist(), ends.tolist(), strict=True), strict=True))

    def entries(self, prefix: Sequence[int]) -> np.ndarray:
        """Places of the spellings that begin with some ids, int64."""
        entry_E = np.arange(*self._edges.get(prefix[0], (0, 0)))
        for depth in range(1, len(prefix)):
            entry_E = entry_E[self.offsets[entry_E] + depth < self.offsets[entry_E + 1]]
            entry_E = entry_E[self.ids[self.offsets[entry_E] + depth] == prefix[depth]]
        return entry_E

    def beginning_with(self, prefix: Sequence[int]) -> Iterator[tuple[int, tuple[int, ...]]]:
        """(token, the spelling behind the prefix) of every spelling that begins with some ids."""
        for entry in self.entries(prefix).tolist():
            yield self.sources[entry], self.spellings[entry][len(prefix) :]


@dataclass(frozen=True, eq=False)
class PairReadings:
    """student: the student's tokens as the teacher reads them. teacher: the other way round."""

    student: Readings
    teacher: Readings

    @classmethod
    def build(cls, student: Reader, teacher: Reader, *, cached: bool = True) -> PairReadings:
        """From the disk if this pair was read before; a minute or two for large vocabularies otherwise."""
        names = [f"{side}_{part}" for side in ("student", "teacher") for part in ("source_E", "offsets", "ids")]
        key = pair_fingerprint(student, teacher)
        arrays = cache.load_arrays("readings", key, names) if cached else None
        if arrays is None:
            found = (
                read_tokens(student, teacher, "the teacher reads the student's tokens"),
                read_tokens(teacher, student, "the student reads the teacher's tokens"),
            )
            parts = [part for side in found for part in (side.source_E, side.offsets, side.ids)]
            arrays = dict(zip(names, parts, strict=True))
            if cached:
                cache.save_arrays("readings", key, arrays)
        columns = [arrays[name] for name in names]
        return cls(Readings(*columns[:3]), Readings(*columns[3:]))


def pair_fingerprint(student: Reader, teacher: Reader) -> str:
    """Hash of both tokenizers and of the rules by which they are read."""
    sizes = len(student.table), len(teacher.table)
    parts = (FORMAT_VERSION, FOLLOWING, _PUNCTUATION, _CONTINUATIONS, student.fingerprint, teacher.fingerprint, sizes)
    return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()


def read_tokens(
    source: Reader,
    reader: Reader,
    title: str,
    front: bytes = b"",
    token_ids: Sequence[int] | None = None,
    following: Callable[[Reader, int], list[bytes]] | None = None,
) -> Readings:
    """Every spelling of the source's tokens by the reader; of some of them behind `front`, which the spelling holds.

    following: what a token is read with, by default `followings`.
    """
    asked, following = source.text_ids if token_ids is None else token_ids, following or followings
    texts = [(k, source.table.tokens[k], after) for k in asked for after in following(source, k)]
    found: set[tuple[tuple[int, ...], int]] = set()
    with progress(title, len(texts), shown=len(texts) > BATCH) as bar:
        for start in range(0, len(texts), BATCH):
            batch = texts[start : start + BATCH]
            found.update(_read_batch(source, reader, batch, front))
            bar.advance(len(batch))
    spellings = sorted(found)
    offsets = np.cumsum([0, *(len(spelling) for spelling, _ in spellings)], dtype=np.int64)
    flat = [token for spelling, _ in spellings for token in spelling]
    return Readings(np.array([k for _, k in spellings], np.int64), offsets, np.array(flat, np.int64))


def _read_batch(
    source: Reader, reader: Reader, batch: list[tuple[int, bytes, bytes]], front: bytes
) -> Iterator[tuple[tuple[int, ...], int]]:
    with_following = [(k, token, token + following) for k, token, following in batch if following]
    own = source.read([text for _, _, text in with_following])
    tokens = source.table.tokens
    kept = [
        (k, token, text)
        for (k, token, text), ids in zip(with_following, own, strict=True)
        if ids is not None and tokens[ids[0]] == token
    ]
    kept += [(k, token, token) for k, token, following in batch if not following]
    for (k, token, _), ids in zip(kept, reader.read([front + text for _, _, text in kept]), strict=True):
        if ids is not None:
            yield cut_behind(reader.table, ids, len(front) + len(token)), k


def cut_behind(table: TokenBytes, ids: Sequence[int], length: int) -> tuple[int, ...]:
    """The ids up to the one that reaches so many bytes."""
    reached, count = 0, 0
    while reached < length:
        reached += len(table.tokens[ids[count]])
        count += 1
    return tuple(ids[:count])


def followings(source: Reader, token_id: int) -> list[bytes]:
    """What a token is read with: nothing; a character of each other kind; the rest of a character that it cuts."""
    token = source.table.tokens[token_id]
    text = as_text(token)
    if text is None:
        return list(completions(token))
    own = kind(text[-1])
    following = [other for other in FOLLOWING if kind(other) != own] + [*(_PUNCTUATION if own == "other" else ())]
    return [b"", *(other.encode() for other in following)]


KINDS = ("letter", "digit", "newline", "space", "other")


def kind(character: str) -> str:
    """One of KINDS; space: white space that is no newline."""
    if character.isalpha():
        return "letter"
    if character.isdigit():
        return "digit"
    return "newline" if character == "\n" else "space" if character.isspace() else "other"


def completions(token: bytes) -> Iterator[bytes]:
    """Bytes that complete the character in which a token ends; none if it begins inside one, or is no UTF-8."""
    start = max(range(len(token)), key=lambda place: (token[place] & 0xC0 != 0x80, place))
    lead = token[start]
    length = 2 if lead >> 5 == 0b110 else 3 if lead >> 4 == 0b1110 else 4 if lead >> 3 == 0b11110 else 0
    missing = length - (len(token) - start)
    if missing <= 0:
        return
    for last in _CONTINUATIONS:
        for middle in (0x80, 0x9F, 0xA0, 0xBF) if missing > 1 else (0,):
            yield bytes([middle] * (missing - 1) + [last])
