"""A position's categories, from what the tokenizers make of its neighbours; each answer is kept.

In: VocabLinks and ids. Out: Categories and Crossings.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

from simct_pl.losses.token_paths.categories import (
    CLASSES,
    DROPPED,
    Categories,
    Crossings,
    Links,
    Node,
    Step,
    exits,
    listed,
)
from simct_pl.losses.token_paths.neighbours import MANY, Front, Ids
from simct_pl.losses.token_paths.shift import Shift
from simct_pl.losses.token_paths.shifts import Shifter
from simct_pl.losses.token_paths.vocab_links import VocabLinks

_MEMORY = 4096  # answers; they are large

NodeOf = Callable[[int], Node]
ASKED = 300  # teacher tokens at a depth; of more, those that few begin alike with are told apart
Left = dict[int, set[int]]  # depth → teacher tokens that leave the path there


class Asker(Shifter):
    """Three questions about a position, by their keys."""

    def __init__(self, links: VocabLinks) -> None:
        super().__init__(links)
        # Answers keeps what it is told; these are for halves that come together in another way.
        self.behind = lru_cache(_MEMORY)(self._behind)
        self.before = lru_cache(_MEMORY)(self._before)
        self.inside = self._inside

    def _behind(self, own: int, inner: Ids) -> Categories:
        """own: the realised student token. inner: the teacher's tokens from the position on that end within it."""
        vocab, label_K = self.links, self.links.student_label_K
        own_class = int(label_K[own])
        if not inner:
            return Categories(CLASSES, {}, [Step(CLASSES)], own_class, [], 0)
        links = Links(vocab.num_labels)
        left: dict[int, set[int]] = {depth: set() for depth in range(1, len(inner) + 1)}
        along: set[int] = set()
        for token, rest in vocab.readings.student.beginning_with(inner[:1]):
            along.add(token)
            links.find(("v", token))
            if vocab.is_tied_K[token]:
                links.join(("v", token), int(label_K[token]))
            if (exit_ := exits(links, ("v", token), rest, inner, 1)) is not None:
                left[exit_[0]].add(exit_[1])

        def node(token: int) -> Node:
            return ("v", token) if token in along else int(label_K[token])

        self._along_path(links, node, own, self._text(vocab.teacher, inner), inner, left, along)
        steps = [Step(CLASSES)]
        for depth in range(1, len(inner) + 1):
            base = links.label(("default", depth))
            steps.append(Step(base, listed(links, depth, left[depth], base)))
        moved = {token: links.label(("v", token)) for token in sorted(along)}
        moved = {token: label for token, label in moved.items() if label != label_K[token]}
        return Categories(CLASSES, moved, steps, links.label(node(own)), links.merged, links.num_own)

    def _along_path(
        self, links: Links, node: NodeOf, own: int, path: bytes, inner: Ids, left: Left, along: set[int]
    ) -> None:
        """Link what lies at the path's later depths: the default of each, and what leaves there.

        path: the bytes from the position on.
        """
        vocab = self.links
        own_length = len(vocab.student.table.tokens[own])
        reached = len(path) - sum(len(vocab.teacher.table.tokens[k]) for k in inner[1:])
        for depth in range(1, len(inner) + 1):
            front = path[:reached]
            begins = own if reached >= own_length else self._first_student(front)
            links.join(("default", depth), ("default", depth) if begins is None else node(begins))
            self._leaving(links, node, front, depth, left, along)
            self._regrouping(links, node, front, depth, inner[depth - 1], begins, left)
            if depth < len(inner):
                reached += len(vocab.teacher.table.tokens[inner[depth]])

    def _leaving(self, links: Links, node: NodeOf, front: bytes, depth: int, left: Left, along: set[int]) -> None:
        """Teacher tokens that leave the path behind some bytes: those that spellings show, and longer ones."""
        vocab, tokens = self.links, self.links.student.table.tokens
        students = {k for k in along if len(tokens[k]) > len(front) and tokens[k].startswith(front)}
        (read,) = vocab.student.read([front])
        last = read[-1] if read else None
        asked = set(self._to_ask("student", last, left[depth]))
        for token in left[depth] - asked:
            links.join(("at", depth, token), ("default", depth))
        behind = {student: tokens[student][len(front) :] for student in students}
        found = {data: vocab.teacher_bytes.beginning_with(data) for data in set(behind.values())}
        for student in sorted(students, key=lambda k: (len(found[behind[k]]), k)):
            data = behind[student]
            longer = {*self._to_ask("student", last, [k for k, other in found[data] if len(other) > len(data)])}
            if len(asked | longer) > ASKED:  # told apart no further; a space more, say, is half a vocabulary
                links.join(("v", student), ("default", depth))
            else:
                asked |= longer
        for token, begun in self._students_reading(front, sorted(asked), left[depth]):
            if token in left[depth] or begun in students:
                left[depth].add(token)
                links.join(("at", depth, token), node(begun))

    def _regrouping(
        self, links: Links, node: NodeOf, front: bytes, depth: int, last: int, begins: int | None, left: Left
    ) -> None:
        """Teacher tokens that leave the path behind some bytes, and with which the student would have cut these
        otherwise. last: the path's token that ends there. begins: what the student begins with where they stand alone.
        """
        asked = [token for token in self._regrouped(front, last) if token not in left[depth]]
        for token, begun in self._students_reading(front, asked, set()):
            if begun != begins:
                left[depth].add(token)
                links.join(("at", depth, token), node(begun))
        for token in self._left_apart(front, sorted(left[depth])):
            links.join(("at", depth, token), ("default", depth))

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
        links = Links(self.links.num_labels, shift.num_own)
        left: Left = {depth: set() for depth in range(len(inner) + 1)}
        along = {own} if shift.student_label(own) == DROPPED else set()

        def node(token: int) -> Node:
            if token not in along and (label := shift.student_label(token)) != DROPPED:
                return label
            along.add(token)  # what a teacher token begins with is not dropped
            return "v", token

        is_linked = shift.teacher_label(covering) != DROPPED
        if inner or not is_linked:
            self._along_covering(links, shift, covering, inner, own, left, along)
        if inner and is_linked:
            self._without_covering(links, shift, covering, left, along)
        if inner:
            text = self._text(self.links.student, written)
            path = self._text(self.links.teacher, inner)[len(text) - outside :]
            self._along_path(links, node, own, path, inner, left, along)
        own_label = links.label(node(own))
        first = {k: x for k, x in listed(links, 0, left[0], DROPPED).items() if x != shift.teacher_label(k)}
        if not inner and not is_linked:
            first[covering] = own_label
        bases = [links.label(("default", depth)) for depth in range(1, len(left))]
        later = [Step(base, listed(links, depth, left[depth], base)) for depth, base in enumerate(bases, 1)]
        steps = [Step(CLASSES, first, shift=shift), *later]
        moved = {k: x for k in sorted(along) if (x := links.label(("v", k))) != shift.student_label(k)}
        moved |= {k: DROPPED for k in self.read_behind(previous, shift) if k != own}
        merged = [*links.merged, *([(shift.base, DROPPED)] if self.joins_whole(previous, shift) else [])]
        found = Categories(CLASSES, moved, steps, own_label, merged, links.num_own, shift=shift)
        return found if shift.is_large else _listed(found, shift)

    def _along_covering(
        self, links: Links, shift: Shift, covering: int, inner: Ids, own: int, left: Left, along: set[int]
    ) -> None:
        """Link the student tokens that the teacher reads into the covering token with where they leave its path."""
        out: set[tuple[int, int]] = set()
        for token, rest in shift.readings.beginning_with((covering,)):
            if token != own and token in shift.contradicting:
                if (exit_ := exits(Links(0), token, rest, inner, 1)) is not None:
                    out.add(exit_)
                continue
            along.add(token)
            if not inner:
                links.join(("v", token), ("v", own))
            elif (exit_ := exits(links, ("v", token), rest, inner, 1)) is not None:
                left[exit_[0]].add(exit_[1])
        for depth, token in out:  # what means student tokens that are left out alone
            if token not in left[depth]:
                left[depth].add(token)
                links.join(("at", depth, token), DROPPED)

    def _without_covering(self, links: Links, shift: Shift, covering: int, left: Left, along: set[int]) -> None:
        """Link what else is one category with the tokens along the path: the covering token's, but for itself."""
        label = shift.teacher_label(covering)
        edges = shift.edges(label).tolist()
        if len(edges) > MANY:  # told apart no further
            for student in {student for student, token in edges if token != covering and student in along}:
                links.join(("v", student), label)
            return
        along.update(student for student, _ in edges)
        for student, token in edges:
            if token != covering:
                left[0].add(token)
                links.join(("v", student), ("at", 0, token))
        if shift.whole is not None and label == shift.base:
            left[0].add(shift.whole)
            links.join(("at", 0, shift.whole), label)


def _listed(found: Categories, shift: Shift) -> Categories:
    """The same without the shift's vectors."""
    students = dict(zip(shift.student_ids.tolist(), shift.student_labels.tolist(), strict=True)) | found.moved
    moved = {token: label for token, label in students.items() if label != shift.base}
    teachers = dict(zip(shift.teacher_ids.tolist(), shift.teacher_labels.tolist(), strict=True))
    first = Step(DROPPED, teachers | found.steps[0].listed)
    return replace(found, base=shift.base, moved=moved, steps=[first, *found.steps[1:]], shift=None)
