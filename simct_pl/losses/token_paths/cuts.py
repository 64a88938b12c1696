"""Which tokens contradict what has been cut: one side would have merged them with what it wrote before.

In: VocabLinks and the tokens before a position. Out: ids of both sides. Where merges tell (tokenization.merges), pairs
of neighbours decide: a side keeps its cut behind its last token if that token and the first one of what follows do not
join. What merges do not tell is asked.
"""

from __future__ import annotations

from functools import cached_property
from itertools import accumulate

import numpy as np

from simct_pl.losses.token_paths.neighbours import LARGE_MEMORY, MANY, UNREAD, Front, Ids, Neighbours, Side, opposite
from simct_pl.losses.token_paths.vocab_links import VocabLinks
from simct_pl.tokenization.bytes import as_text
from simct_pl.tokenization.merges import CASELESS, DIGIT, members
from simct_pl.tokenization.readings import FOLLOWING, KINDS, Reader, kind

UNDECIDED = (CASELESS, DIGIT, -1)  # kinds of which what follows often decides
COMMON = 32  # tokens that were made first


class Cuts(Neighbours):
    """Of one pair."""

    def __init__(self, links: VocabLinks) -> None:
        super().__init__(links)
        # By a side's token: whether it is cut behind it in front of others of its own, which was asked.
        self._cut_behind: dict[tuple[Side, int], dict[int, bool]] = {}

    def _contradicting(
        self, side: Side, earlier: tuple[Front, ...], last: int | None, wrote: bytes | None = None
    ) -> tuple[int, ...]:
        """Tokens of the other side in front of which this one reads a token from an earlier start past the position.

        last: the side's own token that ends at the position, if one does. wrote: the other side's tokens before it; of
        very many that begin alike, those that it could write there.
        """
        own, other = self.tokens[side], self.tokens[opposite(side)]
        found: set[int] = set()
        for front, first in earlier:
            behind = {data[len(front) :] for _, data in own.beginning_with(front) if len(data) > len(front)}
            asked = set[int]()
            for data in behind:
                if wrote is None or other.count(data) <= MANY or self._cuts(other.reader, wrote, data):
                    asked.update(k for k, _ in other.beginning_with(data))
            asked_E = self._to_ask(side, last, np.array(sorted(asked), np.int64))
            found.update(self._never_read(side, front, set(asked_E.tolist()), first))
        return tuple(sorted(found))

    def _cuts(self, reader: Reader, before: bytes, behind: bytes) -> bool:
        """Whether a side ever cuts between some bytes and others, whatever follows."""
        read = reader.read([before + behind + following.encode() for following in ("", *FOLLOWING)])
        ends = (accumulate(reader.table.lengths_V[ids].tolist()) for ids in read if ids is not None)
        return any(len(before) in own for own in ends)

    def _joined(self, before: int, part: bytes, last: int) -> tuple[int, ...]:
        """Student tokens behind the teacher's token `last`, which is `part`, in front of which it would have been cut
        otherwise, and begun no longer token: part of it would have been merged with them.

        before: the student's last token. Nothing, where there are no merges to tell.
        """
        own, other = self.links.teacher.joints, self.links.student.joints
        if own is None or own.last_K[last] < 0 or self.links.teacher_bytes.count(part) > MANY:
            return ()
        found_E = self._beginning_with_joining("teacher", last)
        found_E = found_E[self._known("teacher", last, found_E)[0]]
        if other is not None:  # what the student would not write here either has no mass
            found_E = found_E[~other.known(before, found_E)[0]]
        longer = [data[len(part) :] for _, data in self.links.teacher_bytes.beginning_with(part) if data != part]
        begun = members(found_E, self._students_beginning_with(longer))
        joined: list[int] = found_E[~begun].tolist()
        return tuple(joined)

    def _students_beginning_with(self, prefixes: list[bytes]) -> np.ndarray:
        """Ids, sorted."""
        spans = [self.links.student_bytes.span(prefix) for prefix in prefixes]
        parts = [self._sorted_students[start:end] for start, end in spans]
        return np.unique(np.concatenate([np.zeros(0, np.int64), *parts]))

    @cached_property
    def _sorted_students(self) -> np.ndarray:
        return np.array(self.links.student_bytes.ids, np.int64)

    def _excluded(self, before: int, part: bytes, last: int) -> tuple[int, ...]:
        """Teacher tokens behind `last`, which is `part`, that the student would have merged with its token `before`.

        What the teacher would not write behind `last` has no mass, and may be left where it is.
        """
        own, other = self.links.student.joints, self.links.teacher.joints
        front = self.links.student.table.tokens[before]
        if own is None:
            asked = set(self._behind_longer(front, part, last))
            return self._never_read("student", front, asked, before)
        found_E = self._beginning_with_joining("student", before)
        if other is not None:
            found_E = found_E[~other.known(last, found_E)[0]]
        joins_E, apart_E = self._known("student", before, found_E)
        asked = set(found_E[~joins_E & ~apart_E].tolist())
        return tuple(sorted({*found_E[joins_E].tolist(), *self._never_read("student", front, asked, before)}))

    def _behind_longer(self, front: bytes, part: bytes, last: int) -> set[int]:
        """Teacher tokens behind `last`, which is `part`, that make a longer student token of `front`."""
        vocab = self.links
        longer = [data[len(front) :] for _, data in vocab.student_bytes.beginning_with(front) if len(data) > len(front)]
        asked: set[int] = set()
        for behind, ids in zip(longer, vocab.teacher.read([part + behind for behind in longer]), strict=True):
            if ids is not None and ids[0] == last and len(ids) > 1:
                asked.add(ids[1])
            if ids is None or (ids[0] == last and len(ids) > 1):
                asked |= {k for k, data in vocab.teacher_bytes.beginning_with(behind) if len(data) > len(behind)}
        return asked

    def _regrouped(self, front: bytes, last: int) -> np.ndarray:
        """Teacher tokens that would be written behind `last`, and that join what the student ends some bytes with.

        All of scripts without cases, whose words have few tokens; otherwise, where nearly all such pairs are no text,
        those of the most common tokens.
        """
        own, other = self.links.student.joints, self.links.teacher.joints
        (read,) = self.links.student.read([front])
        if own is None or other is None or not read:
            return np.zeros(0, np.int64)
        found_E = self._beginning_with_joining("student", read[-1])
        found_E = found_E[self._known("student", read[-1], found_E)[0] & ~other.known(last, found_E)[0]]
        caseless_E = other.first_K[found_E] == CASELESS
        rest_E = found_E[~caseless_E]
        # By ranks and not by ids: a SentencePiece vocabulary has its single characters behind all merges.
        common_E = rest_E[np.argsort(other.rank_K[rest_E], kind="stable")[:COMMON]]
        return np.concatenate([found_E[caseless_E], common_E])

    def _left_apart(self, front: bytes, teachers_E: np.ndarray) -> np.ndarray:
        """Of some teacher tokens of scripts without cases, those that begin a student token which leaves the student's
        cuts within and behind some bytes as they are, though they themselves do not.
        """
        other = self.links.teacher.joints
        (read,) = self.links.student.read([front])
        if other is None or not read:
            return np.zeros(0, np.int64)
        caseless_E = teachers_E[other.first_K[teachers_E] == CASELESS]
        found = list(self._partly("student", read[-1], tuple(caseless_E.tolist())))
        return np.unique(self._first["teacher"].first_K[found])

    def joining(self, before: int, students_E: np.ndarray) -> np.ndarray:
        """Which student tokens the student would have merged with its token `before`, bool [E]; none without merges."""
        joints, tokens = self.links.student.joints, self.links.student.table.tokens
        if joints is None:
            return np.zeros(len(students_E), bool)
        joins_E, apart_E = joints.known(before, students_E)
        unknown_U = np.flatnonzero(~joins_E & ~apart_E)
        read = self.links.student.read([tokens[before] + tokens[k] for k in students_E[unknown_U].tolist()])
        joins_E[unknown_U] = [ids is not None and ids[0] != before for ids in read]
        return joins_E

    def _partly(self, side: Side, last: int, others: tuple[int, ...]) -> tuple[int, ...]:
        """Tokens of a side that begin with one of the `others`, which are left out, and would be written behind `last`.

        What follows an `other` decides whether it contradicts the side's cuts. Its row does not tell, so both sides
        leave out what begins with it. Of scripts without cases, digits and parts of characters: elsewhere it would cost
        much and change nothing that is text.
        """
        joints, reader = self.tokens[side].reader.joints, self.tokens[side].reader
        other = opposite(side)
        of_others = self.tokens[other].reader.joints
        if joints is None or of_others is None:
            return ()
        others_E = np.array(others, np.int64)
        others_E = others_E[np.isin(of_others.first_K[others_E], UNDECIDED)]
        if not len(others_E):
            return ()
        found_E = self._first[other].beginning_with(others_E)
        found_E = found_E[members(self._first[other].first_K[found_E], others_E)]
        joins_E, apart_E = joints.known(last, found_E)
        unknown, tokens = found_E[~joins_E & ~apart_E].tolist(), reader.table.tokens
        if len(self._cut_behind) > LARGE_MEMORY:
            self._cut_behind.clear()
        known = self._cut_behind.setdefault((side, last), {})
        new = [k for k in unknown if k not in known]
        read = reader.read([tokens[last] + tokens[k] for k in new])
        known.update((k, ids is not None and ids[0] == last) for k, ids in zip(new, read, strict=True))
        return tuple(sorted({*found_E[apart_E].tolist(), *(k for k in unknown if known[k])}))

    def partly_kept(self, written: Ids) -> set[int]:
        """Teacher tokens that begin as the student's tokens `written`, of which what follows decides whether the
        student's cuts are kept, so that no row tells: those that end inside a character or with punctuation. White
        space is left as it is: it would say nothing at all.
        """
        readings, teacher = self.links.readings.teacher, self.links.teacher
        kept = {token for token, rest in readings.beginning_with(written) if rest}
        texts = {token: as_text(teacher.table.tokens[token]) for token in sorted(kept)}
        parts = [token for token, text in texts.items() if text is None or kind(text[-1]) == "other"]
        return {token for token in parts if any(ids[: len(written)] != written for ids in self._spellings(token))}

    def _spellings(self, token: int) -> list[Ids]:
        """How the student reads a teacher token, whatever follows."""
        readings, (order, starts) = self.links.readings.teacher, self._by_source
        return [readings.spellings[entry] for entry in order[starts[token] : starts[token + 1]].tolist()]

    @cached_property
    def _by_source(self) -> tuple[np.ndarray, np.ndarray]:
        source_E = self.links.readings.teacher.source_E
        order = np.argsort(source_E, kind="stable")
        return order, np.searchsorted(source_E[order], np.arange(len(self.links.teacher.table) + 1))

    def _never_read(self, side: Side, front: bytes, asked: set[int], first: int) -> tuple[int, ...]:
        """Tokens of the other side that contradict a side's cuts behind `front`, whatever follows them.

        first: the token that was written at the beginning of `front`. White space is read with what may follow it too,
        which decides how it is cut.
        """
        tokens = self.tokens[opposite(side)].reader.table.tokens
        spaces = [k for k in asked if tokens[k].isspace()]
        found = self._firsts_behind(side, front, asked.difference(spaces)) | self._firsts_behind(
            side, front, spaces, followed=True
        )
        return tuple(sorted(k for k, firsts in found.items() if not {first, UNREAD}.intersection(firsts)))

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
