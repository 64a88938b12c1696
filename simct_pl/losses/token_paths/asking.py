"""A position's categories, from what the tokenizers make of its neighbours; each answer is kept.

In: VocabLinks and ids. Out: Categories and Crossings.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from simct_pl.losses.token_paths.categories import CLASSES, DROPPED, Categories, Crossings, Links, Step, exits
from simct_pl.losses.token_paths.neighbours import MANY, UNREAD, Front, Ids
from simct_pl.losses.token_paths.shift import Shift
from simct_pl.losses.token_paths.shifts import Shifter
from simct_pl.losses.token_paths.vocab_links import VocabLinks
from simct_pl.tokenization.merges import members
from simct_pl.tokenization.readings import Readings

_MEMORY = 4096  # answers; they are large

ASKED = 300  # teacher tokens at a depth; of more, those that few begin alike with are told apart
_NONE = np.zeros(0, np.int64)


@dataclass(frozen=True)
class _Position:
    """What is found out about one. label_of: labels of student tokens that do not go along the teacher's path.
    is_along_K: those that do. left: depth → teacher tokens that leave the path there, sorted.
    """

    links: Links
    label_of: Callable[[np.ndarray], np.ndarray]
    is_along_K: np.ndarray
    left: dict[int, np.ndarray]

    def node(self, students: np.ndarray) -> np.ndarray:
        """What a teacher token begins with is not dropped."""
        labels = self.label_of(students)
        is_along = self.is_along_K[students] | (labels == DROPPED)
        self.is_along_K[students[is_along]] = True
        return np.where(is_along, self.links.student(students), labels)

    def leave(self, depth: int, teachers: np.ndarray, nodes: np.ndarray | int) -> None:
        """Teacher tokens leave the path at a depth, and mean some nodes."""
        self.left[depth] = np.union1d(self.left[depth], teachers)
        self.links.join(self.links.teacher(depth, teachers), nodes)

    def moved(self) -> dict[int, int]:
        """Labels of student tokens that are others than label_of says."""
        along = np.flatnonzero(self.is_along_K)
        labels = self.links.label(self.links.student(along))
        differs = labels != self.label_of(along)
        return dict(zip(along[differs].tolist(), labels[differs].tolist(), strict=True))

    def follow(self, readings: Readings, entry: np.ndarray, inner: Ids) -> None:
        """Link student tokens, whose spellings begin with the first of the path's tokens, with where they leave it."""
        for found in exits(readings, entry, 1, inner, 1):
            self.leave(found.depth, found.token, self.links.student(readings.source_E[found.entry]))


class Asker(Shifter):
    """Three questions about a position, by their keys."""

    def __init__(self, links: VocabLinks) -> None:
        super().__init__(links)
        # Answers keeps what it is told; these are for halves that come together in another way.
        self.behind = lru_cache(_MEMORY)(self._behind)
        self.before = lru_cache(_MEMORY)(self._before)
        self.inside = self._inside

    def _position(self, label_of: Callable[[np.ndarray], np.ndarray], depths: range, num_own: int = 0) -> _Position:
        num_students = len(self.links.student.table)
        links = Links(self.links.num_labels, num_students, len(self.links.teacher.table), num_own)
        return _Position(links, label_of, np.zeros(num_students, bool), dict.fromkeys(depths, _NONE))

    def _behind(self, own: int, inner: Ids) -> Categories:
        """own: the realised student token. inner: the teacher's tokens from the position on that end within it."""
        vocab, label_K = self.links, self.links.student_label_K
        own_class = int(label_K[own])
        if not inner:
            return Categories(CLASSES, {}, [Step(CLASSES)], own_class, [], 0)
        position = self._position(label_K.__getitem__, range(1, len(inner) + 1))
        readings, links = vocab.readings.student, position.links
        entry = readings.entries(inner[:1])
        along = np.unique(readings.source_E[entry])
        position.is_along_K[along] = True
        tied = along[vocab.is_tied_K[along]]
        links.join(links.student(tied), label_K[tied])
        position.follow(readings, entry, inner)
        self._along_path(position, own, self._text(vocab.teacher, inner), inner)
        steps = [Step(CLASSES)]
        for depth, left in position.left.items():
            base = links.label_of(links.default(depth))
            steps.append(Step(base, links.listed(depth, left, base)))
        moved = position.moved()
        own_label = links.label_of(int(position.node(np.array([own]))[0]))
        return Categories(CLASSES, moved, steps, own_label, links.merged, links.num_own)

    def _along_path(self, position: _Position, own: int, path: bytes, inner: Ids) -> None:
        """Link what lies at the path's later depths: the default of each, and what leaves there.

        path: the bytes from the position on.
        """
        vocab, links = self.links, position.links
        own_length = len(vocab.student.table.tokens[own])
        reached = len(path) - sum(len(vocab.teacher.table.tokens[k]) for k in inner[1:])
        for depth in range(1, len(inner) + 1):
            front = path[:reached]
            begins = own if reached >= own_length else self._first_student(front)
            if begins is not None:
                links.join(links.default(depth), position.node(np.array([begins])))
            self._leaving(position, front, depth)
            self._regrouping(position, front, depth, inner[depth - 1], begins)
            if depth < len(inner):
                reached += len(vocab.teacher.table.tokens[inner[depth]])

    def _leaving(self, position: _Position, front: bytes, depth: int) -> None:
        """Teacher tokens that leave the path behind some bytes: those that spellings show, and longer ones."""
        vocab, links, left = self.links, position.links, position.left[depth]
        students = vocab.student_bytes.ids_S[slice(*vocab.student_bytes.longer_than(front))]
        students = students[position.is_along_K[students]]
        (read,) = vocab.student.read([front])
        last = read[-1] if read else None
        asked = self._to_ask("student", last, left)
        links.join(links.teacher(depth, left[~members(left, asked)]), links.default(depth))
        coarse, longer = self._told_apart(students, front, last, set(asked.tolist()))
        links.join(links.student(np.array(coarse, np.int64)), links.default(depth))
        token, begun = self._students_reading(front, np.array(sorted(longer), np.int64), left)
        kept = members(token, left) | members(begun, np.sort(students))
        position.leave(depth, token[kept], position.node(begun[kept]))

    def _told_apart(
        self, students: np.ndarray, front: bytes, last: int | None, asked: set[int]
    ) -> tuple[list[int], set[int]]:
        """(student tokens that are told apart no further from what has no name, teacher tokens to ask about).

        The latter are those that begin as a student token does behind some bytes and are longer, where they are few: a
        space more, say, is half a vocabulary.
        """
        if len(asked) > ASKED:
            return students.tolist(), asked
        coarse, tokens = [], self.links.student.table.tokens
        count = {k: self.links.teacher_bytes.count(tokens[k][len(front) :]) for k in students.tolist()}
        for student in sorted(count, key=lambda k: (count[k], k)):
            longer = self._longer_to_ask("student", last, tokens[student][len(front) :])
            room = ASKED - len(asked)
            if len(longer) > ASKED or len(new := set(longer.tolist()) - asked) > room:
                coarse.append(student)
            else:
                asked = asked | new
        return coarse, asked

    def _regrouping(self, position: _Position, front: bytes, depth: int, last: int, begins: int | None) -> None:
        """Teacher tokens that leave the path behind some bytes, and with which the student would have cut these
        otherwise. last: the path's token that ends there. begins: what the student begins with where they stand alone.
        """
        links, asked = position.links, self._regrouped(front, last)
        asked = asked[~members(asked, position.left[depth])]
        token, begun = self._students_reading(front, asked, _NONE)
        differs = begun != (UNREAD if begins is None else begins)
        position.leave(depth, token[differs], position.node(begun[differs]))
        apart = self._left_apart(front, position.left[depth])
        links.join(links.teacher(depth, apart), links.default(depth))

    def _before(
        self, written: Ids, outside: int, last: int, earlier: tuple[Front, ...], own_earlier: tuple[Front, ...]
    ) -> Crossings:
        """written: the student's tokens that end at the position, from the one that covers the start of the teacher's
        `last` token, which ends there too. outside: bytes of them before that start. earlier, own_earlier: see
        `overreaching`, of the teacher and the student.
        """
        student, teacher = self.links.student, self.links.teacher
        wrote, part = self._text(student, written), teacher.table.tokens[last]
        found = self._reaching(written, outside, part) or {}
        reaching = {token: behind for token, behind in found.items() if token != last}
        read_into = self._read_into(reaching, part, last, written[-1])
        moved = {k: reaching[token] for k, token in read_into.items() if k != reaching[token]}
        excluded = self._excluded(written[-1], part, last) + self._contradicting("student", own_earlier, written[-1])
        contradicting = self._contradicting("teacher", earlier, last)
        if outside == 0 and (partly := self.partly_kept(written) & reaching.keys()):
            contradicting += tuple(k for k, token in read_into.items() if token in partly)
            reaching = {token: behind for token, behind in reaching.items() if token not in partly}
            moved = {k: behind for k, behind in moved.items() if read_into[k] not in partly}
        joined = {k for k in self._joined(written[-1], part, last) if k not in read_into}
        contradicting = tuple(sorted(joined.union(contradicting)))
        contradicting, excluded = (
            tuple(sorted({*contradicting, *self._partly("student", written[-1], excluded)})),
            tuple(sorted({*excluded, *self._partly("teacher", last, contradicting)})),
        )
        kinds = self._ruled_out(teacher, part, (last,)), self._ruled_out(student, wrote, written)
        return Crossings(reaching, moved, excluded, contradicting, *kinds)

    def _inside(
        self,
        written: Ids,
        outside: int,
        covering: int,
        inner: Ids,
        own: int,
        earlier: tuple[Front, ...],
        previous: int | None,
    ) -> Categories:
        """written, outside: see _before, with `covering`, which goes past the position, for `last`. inner: the
        teacher's tokens from it on that end within `own`. previous: its token before `covering`.
        """
        shift = self.shift(written, outside, earlier)
        is_whole_out = self.joins_whole(previous, shift)
        label_of = shift.without_base if is_whole_out else shift.student_label
        position = self._position(label_of, range(len(inner) + 1), shift.num_own)
        links, own_E = position.links, np.array([own])
        is_linked = int(shift.teacher_label(np.array(covering))) != DROPPED
        position.is_along_K[own] = shift.student_label(own_E)[0] == DROPPED
        if inner or not is_linked:
            self._along_covering(position, shift, covering, inner, own)
        if inner and is_linked:
            self._without_covering(position, shift, covering)
        if inner:
            text = self._text(self.links.student, written)
            path = self._text(self.links.teacher, inner)[len(text) - outside :]
            self._along_path(position, own, path, inner)
        own_label = links.label_of(int(position.node(own_E)[0]))
        first = links.listed(0, position.left[0], DROPPED)
        of_shift = shift.teacher_label(np.fromiter(first, np.int64, len(first))).tolist()
        first = {k: x for (k, x), label in zip(first.items(), of_shift, strict=True) if x != label}
        if not inner and not is_linked:
            first[covering] = own_label
        bases = [links.label_of(links.default(depth)) for depth in range(1, len(position.left))]
        later = [Step(base, links.listed(depth, position.left[depth], base)) for depth, base in enumerate(bases, 1)]
        steps = [Step(CLASSES, first, shift=shift), *later]
        moved = position.moved()
        moved |= {k: DROPPED for k in self.read_behind(previous, shift) if k != own}
        merged = [*links.merged, *([(shift.base, DROPPED)] if is_whole_out else [])]
        found = Categories(CLASSES, moved, steps, own_label, merged, links.num_own, shift=shift)
        return found if shift.is_large else _listed(found, shift)

    def _along_covering(self, position: _Position, shift: Shift, covering: int, inner: Ids, own: int) -> None:
        """Link the student tokens that the teacher reads into the covering token with where they leave its path."""
        links, readings = position.links, shift.readings
        entry = readings.entries((covering,))
        students = readings.source_E[entry]
        is_out = (students != own) & members(students, np.array(sorted(shift.contradicting), np.int64))
        along = students[~is_out]
        position.is_along_K[along] = True
        if not inner:
            links.join(links.student(along), links.student(np.array([own])))
            return
        position.follow(readings, entry[~is_out], inner)
        for found in exits(readings, entry[is_out], 1, inner, 1):  # what means student tokens that are left out alone
            alone = found.token[~members(found.token, position.left[found.depth])]
            position.leave(found.depth, alone, DROPPED)

    def _without_covering(self, position: _Position, shift: Shift, covering: int) -> None:
        """Link what else is one category with the tokens along the path: the covering token's, but for itself."""
        links, label = position.links, int(shift.teacher_label(np.array(covering)))
        student, token = shift.edges(label).T
        others = token != covering
        if len(student) > MANY:  # told apart no further
            links.join(links.student(student[others & position.is_along_K[student]]), label)
            return
        position.is_along_K[student] = True
        position.leave(0, token[others], links.student(student[others]))
        if shift.whole is not None and label == shift.base:
            position.leave(0, np.array([shift.whole]), label)


def _listed(found: Categories, shift: Shift) -> Categories:
    """The same without the shift's vectors."""
    students = dict(zip(shift.student_ids.tolist(), shift.student_labels.tolist(), strict=True)) | found.moved
    moved = {token: label for token, label in students.items() if label != shift.base}
    teachers = dict(zip(shift.teacher_ids.tolist(), shift.teacher_labels.tolist(), strict=True))
    first = Step(DROPPED, teachers | found.steps[0].listed)
    return replace(found, base=shift.base, moved=moved, steps=[first, *found.steps[1:]], shift=None)
