"""What the two tokenizers make of a token and its neighbours: short texts, read by the real tokenizers.

In: VocabLinks, ids and bytes. Out: ids. simct_pl.losses.token_paths.asking makes categories of the answers.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import accumulate
from typing import Literal

from simct_pl.losses.token_paths.vocab_links import SortedTokens, VocabLinks
from simct_pl.tokenization.bytes import as_text
from simct_pl.tokenization.readings import FOLLOWING, KINDS, Reader, cut_behind, followings, kind

MEMORY = 200_000  # answers that are kept
MANY = 2000  # tokens that begin with the same bytes; beyond so many they are not told apart
Ids = tuple[int, ...]
Side = Literal["student", "teacher"]
Front = tuple[bytes, int]  # bytes, and the token that was written at their beginning


class Neighbours:
    """Answers about one pair."""

    def __init__(self, links: VocabLinks) -> None:
        self.links = links
        self.tokens: dict[Side, SortedTokens] = {"student": links.student_bytes, "teacher": links.teacher_bytes}
        self._goes_on = {side: lru_cache(MEMORY)(tokens.goes_on) for side, tokens in self.tokens.items()}

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

    def _contradicting(self, side: Side, earlier: tuple[Front, ...], wrote: bytes | None = None) -> tuple[int, ...]:
        """Tokens of the other side in front of which this one reads a token from an earlier start past the position.

        wrote: the other side's tokens before it; of very many that begin alike, those that it could write there.
        """
        own, other = self.tokens[side], self.tokens["teacher" if side == "student" else "student"]
        found: set[int] = set()
        for front, first in earlier:
            behind = {data[len(front) :] for _, data in own.beginning_with(front) if len(data) > len(front)}
            asked = set[int]()
            for data in behind:
                beginning = [k for k, _ in other.beginning_with(data)]
                if wrote is None or len(beginning) <= MANY or self._cuts(other.reader, wrote, data):
                    asked.update(beginning)
            found.update(self._never_read(side, front, asked, first))
        return tuple(sorted(found))

    def _cuts(self, reader: Reader, before: bytes, behind: bytes) -> bool:
        """Whether a side ever cuts between some bytes and others, whatever follows."""
        read = reader.read([before + behind + following.encode() for following in ("", *FOLLOWING)])
        ends = (accumulate(reader.table.lengths_V[ids].tolist()) for ids in read if ids is not None)
        return any(len(before) in own for own in ends)

    def _reaching(self, written: Ids, outside: int, part: bytes) -> dict[int, int] | None:
        """Teacher tokens that begin with `part` and go past it, and keep the student's cuts → what they begin there.

        None: too many, as behind a space in which a student token ends.
        """
        vocab = self.links
        if outside == 0:
            found = vocab.readings.teacher.beginning_with(written)
            return {token: rest[0] for token, rest in found if rest}
        front = self._text(vocab.student, written)[:outside]
        tokens = [k for k, data in vocab.teacher_bytes.beginning_with(part) if len(data) > len(part)]
        if len(tokens) > MANY:
            return None
        read = vocab.student.read([front + vocab.teacher.table.tokens[k] for k in tokens])
        length = len(written)
        return {
            token: ids[length]
            for token, ids in zip(tokens, read, strict=True)
            if ids is not None and len(ids) > length and tuple(ids[:length]) == written
        }

    def _read_into(self, reaching: dict[int, int], part: bytes) -> dict[int, int]:
        """Student tokens that the teacher, having read `part`, begins with one of some tokens → that token.

        Of very many, those that the student's own cuts show.
        """
        vocab = self.links
        asked = sorted(self._going_on(frozenset(reaching), len(part)) or set(reaching.values()))
        read = vocab.teacher.read([part + vocab.student.table.tokens[k] for k in asked])
        return {k: ids[0] for k, ids in zip(asked, read, strict=True) if ids and ids[0] in reaching}

    def _going_on(self, reaching: frozenset[int], skipped: int) -> set[int] | None:
        """Student tokens that begin with what some teacher tokens are behind so many bytes; None: too many."""
        tokens, found = self.links.teacher.table.tokens, set[int]()
        for data in sorted({tokens[token][skipped:] for token in reaching}, key=len):
            found |= {k for k, _ in self.links.student_bytes.beginning_with(data)}
            if len(found) > MANY:
                return None
        return found

    def _excluded(self, wrote: bytes, before: bytes, part: bytes, last: int) -> tuple[int, ...]:
        """Teacher tokens behind `last` with which the student's token before the position would have merged."""
        vocab = self.links
        longer = [
            data[len(before) :] for _, data in vocab.student_bytes.beginning_with(before) if len(data) > len(before)
        ]
        read = vocab.teacher.read([part + behind for behind in longer])
        asked: set[int] = set()
        for behind, ids in zip(longer, read, strict=True):
            if ids is not None and ids[0] == last and len(ids) > 1:
                asked.add(ids[1])
                asked |= {k for k, data in vocab.teacher_bytes.beginning_with(behind) if len(data) > len(behind)}
        return self._never_read("student", before, asked, vocab.student_bytes.id_of.get(before, -1))

    def _never_read(self, side: Side, front: bytes, asked: set[int], first: int) -> tuple[int, ...]:
        """Tokens of the other side that contradict a side's cuts behind `front`, whatever follows them.

        first: the token that was written at the beginning of `front`. White space is read with what may follow it too,
        which decides how it is cut.
        """
        other: Side = "teacher" if side == "student" else "student"
        tokens = self.tokens[other].reader.table.tokens
        texts = [
            (k, front + tokens[k] + following)
            for k in sorted(asked)
            for following in (self._surviving(other, k) if tokens[k].isspace() else (b"",))
        ]
        read = self.tokens[side].reader.read([text for _, text in texts])
        kept = {k for (k, _), ids in zip(texts, read, strict=True) if ids is None or ids[0] == first}
        return tuple(sorted(asked - kept))

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
