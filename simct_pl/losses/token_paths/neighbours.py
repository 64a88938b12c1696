"""What the two tokenizers make of a token and its neighbours: short texts, read by the real tokenizers.

In: VocabLinks, ids and bytes. Out: ids. simct_pl.losses.token_paths.asking makes categories of the answers.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal

import numpy as np

from simct_pl.losses.token_paths.vocab_links import SortedTokens, VocabLinks
from simct_pl.tokenization.merges import members
from simct_pl.tokenization.readings import Reader, Readings, followings

MEMORY = 200_000  # answers that are kept
MOST = 50_000  # where merges tell about nearly all of them
MOST_BEGUN = 1_000_000  # tokens behind some bytes that are kept
LARGE_MEMORY = 2048  # answers that are whole arrays of tokens
UNREAD = -1
MANY = 2000  # tokens that begin with the same bytes; beyond so many they are not told apart
Ids = tuple[int, ...]
Side = Literal["student", "teacher"]
Front = tuple[bytes, int]  # bytes, and the token that was written at their beginning
_NONE = np.zeros(0, np.int64)


def opposite(side: Side) -> Side:
    return "teacher" if side == "student" else "student"


@dataclass(frozen=True, eq=False)
class Firsts:
    """The tokens that one side's tokenizer begins the other side's tokens with.

    first_K: int64; -1 where it depends on what follows, and where there is none. starts_V, tokens_E: the other side's
    tokens that may begin with token v are tokens_E[starts_V[v]:starts_V[v + 1]].
    """

    first_K: np.ndarray
    starts_V: np.ndarray
    tokens_E: np.ndarray

    @classmethod
    def of(cls, readings: Readings, other: Reader, own: SortedTokens) -> Firsts:
        """Of what own reads in the other's tokens; one that is no text begins with the longest that its bytes do."""
        tokens = other.table.tokens
        unread = sorted({*other.text_ids}.difference(readings.sources))
        begun = [(first, k) for k in unread if (first := own.longest_prefix(tokens[k])) is not None]
        parts = [np.stack([readings.first_E, readings.source_E], 1), np.array(begun, np.int64).reshape(-1, 2)]
        pairs = np.unique(np.concatenate(parts), axis=0)
        sources, place, count = np.unique(pairs[:, 1], return_index=True, return_counts=True)
        first_K = np.full(len(tokens), -1, np.int64)
        first_K[sources[count == 1]] = pairs[place[count == 1], 0]
        return cls(first_K, np.searchsorted(pairs[:, 0], np.arange(len(own.reader.table) + 1)), pairs[:, 1])

    def beginning_with(self, firsts: np.ndarray) -> np.ndarray:
        """The other side's tokens that may begin with one of some tokens, sorted."""
        lengths = self.starts_V[firsts + 1] - self.starts_V[firsts]
        shifts = self.starts_V[firsts] - np.cumsum(lengths) + lengths
        is_found_K = np.zeros(len(self.first_K), bool)
        is_found_K[self.tokens_E[np.arange(lengths.sum()) + np.repeat(shifts, lengths)]] = True
        return np.flatnonzero(is_found_K)


class Neighbours:
    """Answers about one pair. What a side's merges tell is not asked (simct_pl.tokenization.merges)."""

    def __init__(self, links: VocabLinks) -> None:
        self.links = links
        self.tokens: dict[Side, SortedTokens] = {"student": links.student_bytes, "teacher": links.teacher_bytes}
        readings = links.readings
        self._first: dict[Side, Firsts] = {
            "student": Firsts.of(readings.teacher, links.teacher, links.student_bytes),
            "teacher": Firsts.of(readings.student, links.student, links.teacher_bytes),
        }
        self._known_begun: dict[tuple[Side, bytes, bool], dict[int, tuple[int, ...]]] = {}
        self._num_begun = 0
        self._goes_on = {side: lru_cache(MEMORY)(tokens.goes_on) for side, tokens in self.tokens.items()}

    def _known(self, side: Side, last: int, others_E: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(tokens of the other side in front of which a side would not cut behind its token `last`, tokens in front of
        which it would), bool [E] each; in neither: it has to be asked.
        """
        joints = self.tokens[side].reader.joints
        if joints is None:
            return np.zeros(len(others_E), bool), np.zeros(len(others_E), bool)
        return joints.known(last, self._first[side].first_K[others_E])

    def _to_ask(self, side: Side, last: int | None, others_E: np.ndarray) -> np.ndarray:
        """Tokens of the other side without those in front of which a side is known to cut behind `last`."""
        return others_E if last is None else others_E[~self._known(side, last, others_E)[1]]

    @lru_cache(LARGE_MEMORY)  # noqa: B019 - lives as long as the pair
    def _beginning_with_joining(self, side: Side, last: int) -> np.ndarray:
        """The other side's tokens that may begin with one that joins a side's token `last`; none without merges."""
        joints = self.tokens[side].reader.joints
        return self._first[side].beginning_with(_NONE if joints is None else joints.joining(last))

    def _longer_to_ask(self, side: Side, last: int | None, data: bytes) -> np.ndarray:
        """_to_ask of the other side's tokens that begin with some bytes and are longer; however many these are."""
        other = self.tokens[opposite(side)]
        span = other.longer_than(data)
        places = (place_E[slice(*np.searchsorted(place_E, span))] for place_E in self._undecided(side, last))
        return other.ids_S[np.concatenate([*places])]

    @lru_cache(LARGE_MEMORY)  # noqa: B019 - lives as long as the pair
    def _undecided(self, side: Side, last: int | None) -> tuple[np.ndarray, ...]:
        """Where the other side's tokens lie, by their bytes, in front of which a side is not known to cut behind
        `last`: those of kinds that merges do not tell about, and those that join.
        """
        joints, firsts = self.tokens[side].reader.joints, self._first[side]
        if joints is None or last is None:
            return (self._undecided_kinds(side, -1),)
        last_kind, joining = int(joints.last_K[last]), joints.joining(last)
        others_E = self._beginning_with_joining(side, last)
        first_E = firsts.first_K[others_E]
        is_new_E = members(first_E, joining) & joints.apart_kinds(last_kind)[joints.first_kinds(first_E)]
        place_E = np.sort(self._place[opposite(side)][others_E[is_new_E]])
        return self._undecided_kinds(side, last_kind), place_E[place_E >= 0]

    @lru_cache(MEMORY)  # noqa: B019 - lives as long as the pair
    def _undecided_kinds(self, side: Side, last_kind: int) -> np.ndarray:
        joints, ids_S = self.tokens[side].reader.joints, self.tokens[opposite(side)].ids_S
        if joints is None:
            return np.arange(len(ids_S))
        kind_S = joints.first_kinds(self._first[side].first_K[ids_S])
        return np.flatnonzero(~joints.apart_kinds(last_kind)[kind_S])

    @cached_property
    def _place(self) -> dict[Side, np.ndarray]:
        """Where each id of a side lies among its tokens by bytes, or -1."""
        found: dict[Side, np.ndarray] = {}
        for side, tokens in self.tokens.items():
            found[side] = np.full(len(tokens.reader.table), -1, np.int64)
            found[side][tokens.ids_S] = np.arange(len(tokens.ids_S))
        return found

    def _text(self, reader: Reader, ids: Ids) -> bytes:
        return b"".join([reader.table.tokens[k] for k in ids])

    def _students_reading(
        self, front: bytes, asked_E: np.ndarray, followed_E: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """(teacher tokens, what the student begins with where it reads some bytes and then each), int64.

        followed_E: teacher tokens that are read with what may follow them, too; sorted.
        """
        is_followed_E = members(asked_E, followed_E)
        found = self._firsts_behind("student", front, asked_E[~is_followed_E].tolist())
        found |= self._firsts_behind("student", front, asked_E[is_followed_E].tolist(), followed=True)
        pairs = [(token, first) for token, firsts in found.items() for first in firsts if first != UNREAD]
        token_E, first_E = np.array(pairs, np.int64).reshape(-1, 2).T
        return token_E, first_E

    def _firsts_behind(
        self, side: Side, front: bytes, asked: Collection[int], *, followed: bool = False
    ) -> dict[int, tuple[int, ...]]:
        """What a side begins with where it reads some bytes and then a token of the other side, by that token; UNREAD
        where it does not read them. Each is read once.

        followed: once with all that may follow the token; see _surviving.
        """
        other = opposite(side)
        tokens = self.tokens[other].reader.table.tokens
        if self._num_begun > MOST_BEGUN:
            self._known_begun.clear()
            self._num_begun = 0
        known = self._known_begun.setdefault((side, front, followed), {})
        new = [k for k in asked if k not in known]
        behind = [self._surviving(other, k) if followed else (b"",) for k in new]
        texts = [front + tokens[k] + after for k, afters in zip(new, behind, strict=True) for after in afters]
        firsts = iter([ids[0] if ids else UNREAD for ids in self.tokens[side].reader.read(texts)])
        known.update((k, tuple(itertools.islice(firsts, len(afters)))) for k, afters in zip(new, behind, strict=True))
        self._num_begun += len(new)
        return {k: known[k] for k in asked}

    def _survived(self, token: int) -> tuple[bytes, ...]:
        """What may follow a teacher token that stays the token which it is."""
        return self._surviving("teacher", token)

    @lru_cache(MEMORY)  # noqa: B019 - lives as long as the pair
    def _surviving(self, side: Side, token: int) -> tuple[bytes, ...]:
        reader = self.tokens[side].reader
        data = reader.table.tokens[token]
        found = followings(reader, token)
        read = reader.read([data + following for following in found])
        return tuple(
            following
            for following, ids in zip(found, read, strict=True)
            if not following or (ids is not None and reader.table.tokens[ids[0]] == data)
        )

    def _first_student(self, front: bytes) -> int | None:
        (ids,) = self.links.student.read([front])
        return ids[0] if ids else self.links.student_bytes.longest_prefix(front)

    def overreaching(self, side: Side, before: Ids, part: bytes) -> tuple[Front, ...]:
        """From each start of a side's tokens `before`, the bytes up to the position and that token, where one goes on
        from them. part: what follows those tokens and ends at the position. Almost always none.
        """
        tokens = self.tokens[side].reader.table.tokens
        found, front = [], part
        for token in reversed(before):
            front = tokens[token] + front
            if self._goes_on[side](front):
                found.append((front, token))
        return tuple(found)

    def _reaching(self, written: Ids, outside: int, part: bytes) -> dict[int, int] | None:
        """Teacher tokens that begin with `part` and go past it, and keep the student's cuts → what they begin there.

        None: too many, as behind a space in which a student token ends.
        """
        vocab = self.links
        if outside == 0:
            return self._begun_alone(written)
        front = self._text(vocab.student, written)[:outside]
        if vocab.teacher_bytes.count(part) > MANY:
            return None
        tokens = [k for k, data in vocab.teacher_bytes.beginning_with(part) if len(data) > len(part)]
        read = vocab.student.read([front + vocab.teacher.table.tokens[k] for k in tokens])
        length = len(written)
        return {
            token: ids[length]
            for token, ids in zip(tokens, read, strict=True)
            if ids is not None and len(ids) > length and tuple(ids[:length]) == written
        }

    def _begun_alone(self, written: Ids) -> dict[int, int]:
        """Teacher tokens that begin as some student tokens do and go past them → what they begin there: of several that
        what follows decides about, the one which they begin alone.
        """
        found: dict[int, set[int]] = {}
        for token, rest in self.links.readings.teacher.beginning_with(written):
            if rest:
                found.setdefault(token, set()).add(rest[0])
        open_ = [token for token, begun in found.items() if len(begun) > 1]
        alone = self.links.student.read([self.links.teacher.table.tokens[token] for token in open_])
        for token, ids in zip(open_, alone, strict=True):
            own = tuple(ids or ())[len(written) : len(written) + 1]
            found[token] = found[token].intersection(own) or found[token]
        return {token: max(begun) for token, begun in found.items()}

    def _read_into(
        self, reaching: dict[int, int], part: bytes, last: int | None = None, before: int | None = None
    ) -> dict[int, int]:
        """Student tokens that the teacher, having read `part`, begins with one of some tokens → that token.

        Of very many, those that the student's own cuts show. last: the teacher's token that `part` is, if it is one.
        before: the student's last token; what it would have merged with has no mass.
        """
        vocab = self.links
        most = MANY if last is None or vocab.teacher.joints is None else MOST
        found = self._going_on(frozenset(reaching), len(part), most)
        beginning = {*reaching.values()} if found is None else found
        asked_E = self._to_ask("teacher", last, np.array(sorted(beginning), np.int64))
        if before is not None and vocab.student.joints is not None:
            asked_E = asked_E[~vocab.student.joints.known(before, asked_E)[0]]
        begun = self._firsts_behind("teacher", part, asked_E.tolist())
        return {k: first for k, (first,) in begun.items() if first in reaching}

    def _going_on(self, reaching: frozenset[int], skipped: int, most: int = MANY) -> set[int] | None:
        """Student tokens that begin with what some teacher tokens are behind so many bytes; None: too many."""
        tokens, found = self.links.teacher.table.tokens, set[int]()
        for data in sorted({tokens[token][skipped:] for token in reaching}, key=len):
            if self.links.student_bytes.count(data) > most:
                return None
            found |= {k for k, _ in self.links.student_bytes.beginning_with(data)}
            if len(found) > most:
                return None
        return found
