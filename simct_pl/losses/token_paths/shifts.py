"""Classes of both vocabularies where the position lies inside a teacher token.

In: what the student wrote since the teacher's token began. Out: Shift. There the student's next tokens are to be
compared with teacher tokens that begin with the bytes written already: `eturn` with ` return` behind a space and an r.
They are linked as in `vocab_links`, only that the teacher reads each student token behind those bytes, and the student
reads each teacher token from its own cuts on. Half a vocabulary may go on from one character, so that the answers are
vectors that many positions share; what the teacher reads behind some bytes is kept on disk.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

import numpy as np

from simct_pl.losses.token_paths.cuts import Cuts
from simct_pl.losses.token_paths.neighbours import MANY, Front, Ids
from simct_pl.losses.token_paths.shift import Shift
from simct_pl.losses.token_paths.vocab_links import VocabLinks
from simct_pl.tokenization import cache
from simct_pl.tokenization.merges import CASELESS, members
from simct_pl.tokenization.readings import BATCH, Reader, Readings, followings, pair_fingerprint, read_tokens

KEPT = 1024  # shifts
_NAMES = ("source_E", "offsets", "ids")


class Shifter(Cuts):
    """The shifts of a pair, made when they are first needed."""

    def __init__(self, links: VocabLinks) -> None:
        super().__init__(links)
        self.shift = lru_cache(KEPT)(self._shift)
        self._behind_part = lru_cache(KEPT)(self._students_behind)
        self._in_front = lru_cache(KEPT)(self._teachers_behind)
        self._equal: dict[tuple[object, ...], Shift] = {}

    def _shift(self, written: Ids, outside: int, earlier: tuple[Front, ...]) -> Shift:
        """written: the student's tokens that end at the position, from the one that covers the start of the teacher's
        token. outside: bytes of them before that start. earlier: see `overreaching`.
        """
        vocab = self.links
        text = self._text(vocab.student, written)
        part = text[outside:]
        whole = vocab.teacher_bytes.id_of.get(part)
        if whole is not None and not self._may_end(written, whole):
            whole = None
        begun_E2, behind = self._begun(written, outside, part), self._behind_part(part)
        contradicting = self._contradicting("teacher", earlier, None, text)
        if outside == 0 and (partly := self.partly_kept(written)):
            begun_E2 = begun_E2[~np.isin(begun_E2[:, 1], sorted(partly))]
            into = behind.source_E[np.isin(behind.first_E, sorted(partly))].tolist()
            contradicting = tuple(sorted({*contradicting, *into}))
        if whole is not None:
            begun_E2 = np.concatenate([begun_E2, self._also_whole(whole, begun_E2[:, 0])])
        kinds = 0 if whole is None else self._ruled_out(vocab.teacher, part, (whole,))
        ruled_out = np.flatnonzero(~vocab.student_keep_MK[kinds])
        shorter = behind.source_E[vocab.teacher.table.lengths_V[behind.first_E] < len(part)]
        shift = Shift.build(vocab, behind, begun_E2, whole, contradicting, np.append(shorter, ruled_out))
        if len(self._equal) > KEPT:
            self._equal.clear()
        return self._equal.setdefault(shift.key, shift)

    def read_behind(self, previous: int | None, shift: Shift) -> list[int]:
        """Student tokens that the teacher reads into a token which it would have merged with its token `previous`."""
        joints, first_E = self.links.teacher.joints, shift.readings.first_E
        if joints is None or previous is None:
            return []
        firsts = np.unique(first_E[members(first_E, joints.joining(previous))])
        joins, apart = joints.known(previous, firsts)
        unknown = np.flatnonzero(~joins & ~apart)[:MANY]
        tokens = self.links.teacher.table.tokens
        read = self.links.teacher.read([tokens[previous] + tokens[k] for k in firsts[unknown].tolist()])
        joins[unknown] = [ids is not None and ids[0] != previous for ids in read]
        is_joined_E = members(first_E, firsts[joins])
        source_E = shift.readings.source_E
        found: list[int] = np.setdiff1d(source_E[is_joined_E], source_E[~is_joined_E]).tolist()
        return found

    def joins_whole(self, previous: int | None, shift: Shift) -> bool:
        """Whether the teacher would have merged its token `previous` with the one that ends at the position."""
        joints, tokens = self.links.teacher.joints, self.links.teacher.table.tokens
        if joints is None or previous is None or shift.whole is None:
            return False
        joins, apart = joints.known(previous, np.array([shift.whole]))
        if joins[0] or apart[0]:
            return bool(joins[0])
        texts = [tokens[previous] + tokens[shift.whole] + after for after in self._survived(shift.whole)]
        return not any(ids is None or ids[0] == previous for ids in self.links.teacher.read(texts))

    def _begun(self, written: Ids, outside: int, part: bytes) -> np.ndarray:
        """(student token, teacher token) for each teacher token that goes past the position and keeps the student's
        cuts: what the student begins with behind them.
        """
        vocab = self.links
        front = self._text(vocab.student, written)[:outside]
        readings = vocab.readings.teacher if outside == 0 else self._in_front(front, part)
        found = [(rest[0], token) for token, rest in readings.beginning_with(written) if rest]
        found_E2 = np.array(found, np.int64).reshape(-1, 2)
        begun, place = np.unique(found_E2[:, 0], return_inverse=True)
        return found_E2[~self.joining(written[-1], begun)[place]]  # the others change the student's last cut

    def _also_whole(self, whole: int, students_E: np.ndarray) -> np.ndarray:
        """(student token, `whole`) for those that begin a longer teacher token behind `whole`, though alone they are
        read into one that begins with it. Of scripts without cases, as in _partly.
        """
        joints = self.links.student.joints
        if joints is None or not len(students_E):
            return np.zeros((0, 2), np.int64)
        students = np.unique(students_E[joints.first_K[students_E] == CASELESS])
        apart = self._partly("teacher", whole, tuple(students.tolist()))
        found = np.unique(self._first["student"].first_K[list(apart)]) if apart else np.zeros(0, np.int64)
        return np.column_stack([found, np.full(len(found), whole)])

    def _teachers_behind(self, front: bytes, part: bytes) -> Readings:
        """How the student reads the teacher's tokens that begin with `part` behind some bytes."""
        vocab = self.links
        longer = [k for k, data in vocab.teacher_bytes.beginning_with(part) if len(data) > len(part)]
        return self._read(vocab.teacher, vocab.student, front, longer)

    def _students_behind(self, part: bytes) -> Readings:
        """How the teacher reads student tokens behind a part of its own: those that go along with one of its tokens."""
        vocab = self.links
        longer = [data for _, data in vocab.teacher_bytes.beginning_with(part)]
        tails = [data[len(part) :] for data in longer if len(data) > len(part)]
        beginning = {tail[:length] for tail in tails for length in range(1, len(tail))}
        asked = {token for data in beginning if (token := vocab.student_bytes.id_of.get(data)) is not None}
        last = None
        for tail in tails:  # in order: those that begin with another come behind it
            if last is None or not tail.startswith(last):
                last = tail
                asked.update(k for k, _ in vocab.student_bytes.beginning_with(tail))
        return self._read(vocab.student, vocab.teacher, part, sorted(asked))

    def _read(self, source: Reader, reader: Reader, front: bytes, token_ids: list[int]) -> Readings:
        """From the disk, if there are many and they were read before."""

        def read() -> Readings:
            side = "student" if source is self.links.student else "teacher"
            title = f"{len(token_ids)} tokens of the {side} behind {front.decode(errors='replace')!r}"
            return read_tokens(source, reader, title, front, token_ids, _white_space_followed)

        if len(token_ids) < BATCH:
            return read()
        key = hashlib.blake2b(repr((pair_fingerprint(source, reader), front, token_ids[0])).encode(), digest_size=16)
        arrays = cache.load_arrays("readings-behind", key.hexdigest(), _NAMES)
        if arrays is None:
            found = read()
            arrays = {"source_E": found.source_E, "offsets": found.offsets, "ids": found.ids}
            cache.save_arrays("readings-behind", key.hexdigest(), arrays)
        return Readings(*(arrays[name] for name in _NAMES))


def _white_space_followed(source: Reader, token_id: int) -> list[bytes]:
    """What follows decides how white space is cut, and hardly anything else; all would take minutes."""
    return followings(source, token_id) if source.table.tokens[token_id][-1:].isspace() else [b""]
