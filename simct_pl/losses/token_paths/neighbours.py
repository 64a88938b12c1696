"""What the two tokenizers make of a token and its neighbours: short texts, read by the real tokenizers.

In: VocabLinks, ids and bytes. Out: ids. simct_pl.losses.token_paths.asking makes categories of the answers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

from simct_pl.losses.token_paths.vocab_links import SortedTokens, VocabLinks
from simct_pl.tokenization.bytes import as_text
from simct_pl.tokenization.readings import FOLLOWING, KINDS, Reader, Readings, followings, kind

MEMORY = 200_000  # answers that are kept
MOST = 50_000  # where merges tell about nearly all of them
MANY = 2000  # tokens that begin with the same bytes; beyond so many they are not told apart
Ids = tuple[int, ...]
Side = Literal["student", "teacher"]
Front = tuple[bytes, int]  # bytes, and the token that was written at their beginning


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
        return np.unique(self.tokens_E[np.arange(lengths.sum()) + np.repeat(shifts, lengths)])


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
        self._goes_on = {side: lru_cache(MEMORY)(tokens.goes_on) for side, tokens in self.tokens.items()}

    def _known(self, side: Side, last: int, others_E: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(tokens of the other side in front of which a side would not cut behind its token `last`, tokens in front of
        which it would), bool [E] each; in neither: it has to be asked.
        """
        joints = self.tokens[side].reader.joints
        if joints is None:
            return np.zeros(len(others_E), bool), np.zeros(len(others_E), bool)
        return joints.known(last, self._first[side].first_K[others_E])

    def _to_ask(self, side: Side, last: int | None, others: Iterable[int]) -> list[int]:
        """Tokens of the other side without those in front of which a side is known to cut behind `last`."""
        others_E = np.array(sorted(others), np.int64)
        if last is not None:
            others_E = others_E[~self._known(side, last, others_E)[1]]
        asked: list[int] = others_E.tolist()
        return asked

    def _text(self, reader: Reader, ids: Ids) -> bytes:
        return b"".join([reader.table.tokens[k] for k in ids])

    def _students_reading(self, front: bytes, asked: list[int], followed: set[int]) -> list[tuple[int, int]]:
        """(teacher token, what the student begins with where it reads some bytes and then that token).

        followed: teacher tokens that are read with what may follow them, too.
        """
        tokens = self.links.teacher.table.tokens
        texts = [
            (token, front + tokens[token] + following)
            for token in asked
            for following in (self._survived(token) if token in followed else (b"",))
        ]
        read = self.links.student.read([text for _, text in texts])
        return [(token, ids[0]) for (token, _), ids in zip(texts, read, strict=True) if ids]

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
            found = vocab.readings.teacher.beginning_with(written)
            return {token: rest[0] for token, rest in found if rest}
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
        asked = self._to_ask("teacher", last, set(reaching.values()) if found is None else found)
        if before is not None and vocab.student.joints is not None:
            asked_E = np.array(asked, np.int64)
            asked = asked_E[~vocab.student.joints.known(before, asked_E)[0]].tolist()
        read = vocab.teacher.read([part + vocab.student.table.tokens[k] for k in asked])
        return {k: ids[0] for k, ids in zip(asked, read, strict=True) if ids and ids[0] in reaching}

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

    def _ruled_out(self, reader: Reader, text: bytes, ids: Ids) -> int:
        """Kinds of characters in front of which a side would not have cut a text as it did, as a bit mask.

        Those of the text's own last kind belong to it, and are asked about token by token; so is a character that
        becomes one with the text's last token.
        """
        own = as_text(text[-4:].lstrip(bytes(range(0x80, 0xC0))))
        if not own:
            return 0
        asked = [following for following in FOLLOWING if kind(following) != kind(own[-1])]
        read = reader.read([text + following.encode() for following in asked])
        lengths_V = reader.table.lengths_V
        kept = [
            found is None or all(lengths_V[a] >= lengths_V[b] for a, b in zip(found, ids, strict=False))
            for found in read
        ]
        survived = {kind(following) for following, is_kept in zip(asked, kept, strict=True) if is_kept}
        return sum(1 << KINDS.index(name) for name in {kind(following) for following in asked} - survived)

    def _may_end(self, written: Ids, whole: int) -> bool:
        """Whether anything that may follow a teacher token leaves the student's cuts as they are; see _survived."""
        text = self._text(self.links.student, written)
        read = self.links.student.read([text + following for following in self._survived(whole)])
        return any(ids is None or tuple(ids[: len(written)]) == written for ids in read)
