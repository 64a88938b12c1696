"""The teacher's path around each student token of some responses.

In: alignments and an Asker. Out: TokenPaths. A response's rows are counted as in UnitRows: they follow those of the
response before it. Paths never leave the stretch of neighbouring supervised units that their token lies in, so no row
of another response, and none beside a lost stretch, is ever read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate

import numpy as np

from simct_pl.losses.token_paths.asking import Asker
from simct_pl.losses.token_paths.categories import CLASSES, DROPPED, Categories, Crossings, Step
from simct_pl.losses.token_paths.paths import PathTable, TokenPaths
from simct_pl.losses.token_paths.vocab_links import STOP
from simct_pl.types import STUDENT_END, STUDENT_START, TEACHER_END, TEACHER_START, UnitAlignment

LOOK_BACK = 3  # teacher tokens before T0 that could have been merged with what follows the position


class PathBuilder:
    """Makes TokenPaths of a pair's responses."""

    def __init__(self, asker: Asker) -> None:
        self.asker, self.links = asker, asker.links

    def build(self, alignments: Sequence[UnitAlignment]) -> TokenPaths:
        """Paths of the student tokens in supervised units, in order."""
        table = PathTable()
        teacher_offset = 0
        for alignment in alignments:
            for first, last in _stretches(alignment):
                self._stretch(table, alignment, first, last, teacher_offset)
            teacher_offset += alignment.num_teacher_tokens
        return table.finish(self.links.num_labels)

    def _stretch(self, table: PathTable, alignment: UnitAlignment, first: int, last: int, teacher_offset: int) -> None:
        """Neighbouring units first … last."""
        students = slice(alignment.units_U6[first, STUDENT_START], alignment.units_U6[last, STUDENT_END])
        teachers = slice(alignment.units_U6[first, TEACHER_START], alignment.units_U6[last, TEACHER_END])
        places = _Places(
            alignment.student_ids_S[students].tolist(),
            alignment.teacher_ids_T[teachers].tolist(),
            self.links.student.table.lengths_V,
            self.links.teacher.table.lengths_V,
            has_stop=alignment.has_stop and last == alignment.num_units - 1,
        )
        for i in range(len(places.student_ids)):
            start, categories = self._at(places, i)
            is_cut = places.teacher_end[start + len(categories.steps) - 1] <= places.student_end[i]
            count = len(categories.steps)
            ids = places.teacher_ids[start : start + count]
            rows = range(
                teacher_offset + int(teachers.start) + start, teacher_offset + int(teachers.start) + start + count
            )
            table.add(categories, ids, rows, self._merged(categories, ids, is_cut))

    def _at(self, places: _Places, i: int) -> tuple[int, Categories]:
        """(the first teacher token of the path, categories) of a student token."""
        own = places.student_ids[i]
        if self.links.same_tokenizer:
            return i, Categories(CLASSES, {}, [Step(CLASSES)], int(self.links.student_label_K[own]), [], 0)
        start, end = places.student_start[i], places.student_end[i]
        at = places.teacher_token_at(start)
        after = places.teacher_ending_by(end)
        inner = tuple(places.teacher_ids[at:after])
        num_left = len(places.teacher_ids) - at
        if places.teacher_start[at] < start:
            written, outside = places.written(i, places.teacher_start[at])
            part = self._bytes(written)[outside:]
            earlier = self.asker.overreaching("teacher", places.teacher_before(at), part)
            return at, _cut(self.asker.inside(written, outside, places.teacher_ids[at], inner, own, earlier), num_left)
        if places.is_stop(at):
            found = Categories(CLASSES, {}, [Step(CLASSES)], STOP, [], 0)
        else:
            found = _cut(self.asker.behind(own, inner), num_left)
        if at == 0:
            return at, found
        written, outside = places.written(i, places.teacher_start[at - 1])
        part = self.links.teacher.table.tokens[places.teacher_ids[at - 1]]
        earlier = self.asker.overreaching("teacher", places.teacher_before(at - 1), part)
        own_earlier = self.asker.overreaching("student", places.student_before(i), b"")[1:]
        crossings = self.asker.before(written, outside, places.teacher_ids[at - 1], earlier, own_earlier)
        if not crossings.any:
            return at, found
        return at - bool(crossings.reaching), self._crossed(found, crossings, own)

    def _bytes(self, student_ids: tuple[int, ...]) -> bytes:
        tokens = self.links.student.table.tokens
        return b"".join([tokens[k] for k in student_ids])

    def _crossed(self, found: Categories, crossings: Crossings, own: int) -> Categories:
        """With what the tokens before the position change; a first step more where teacher tokens go past it."""
        label_K = self.links.student_label_K
        contradicting = dict.fromkeys(crossings.contradicting, DROPPED)
        known = found.moved | contradicting
        behind = {token: known.get(token, int(label_K[token])) for token in set(crossings.reaching.values())}
        moved = found.moved | {token: behind[like] for token, like in crossings.moved.items()} | contradicting
        if crossings.student_kinds:  # what is named is not dropped
            moved |= behind | {own: found.moved.get(own, int(label_K[own]))}
        else:
            moved.pop(own, None)
            moved |= {own: found.moved[own]} if own in found.moved else {}
        steps = [crossings.main_step, *found.steps[1:]]  # none lists anything at a common cut
        if crossings.reaching:
            listed = dict(zip(crossings.reaching, map(behind.__getitem__, crossings.reaching.values()), strict=True))
            steps.insert(0, Step(DROPPED, listed))
        return replace(found, moved=moved, steps=steps, kinds=crossings.student_kinds)

    def _merged(self, categories: Categories, ids: list[int], is_cut: bool) -> list[tuple[int, int]]:
        """What is one category here: also where the path ends, and the realised student token."""
        if is_cut:
            return categories.merged
        step, token = categories.steps[-1], ids[-1]
        label = step.listed.get(token, step.base)
        if label == CLASSES:
            label = int(self.links.teacher_label_K[token]) if step.shift is None else step.shift.teacher_label(token)
        merged = dict(categories.merged)
        ends = [merged.get(x, x) for x in (label, categories.own)]
        if DROPPED not in ends and ends[0] != ends[1]:
            return [*((a, ends[1] if b == ends[0] else b) for a, b in categories.merged), (ends[0], ends[1])]
        return categories.merged


def _cut(categories: Categories, num_left: int) -> Categories:
    """Without the step behind the stretch's last token: what would leave the path there is at its end."""
    if len(categories.steps) <= num_left:
        return categories
    *steps, behind = categories.steps
    ends = {behind.base, *behind.listed.values()} - {categories.own, DROPPED}
    merged = [*categories.merged, *((label, categories.own) for label in sorted(ends))]
    return replace(categories, steps=steps, merged=merged)


class _Places:
    """Tokens of a stretch by the bytes where they start and end; a stop counts as one byte."""

    def __init__(
        self,
        student_ids: list[int],
        teacher_ids: list[int],
        student_lengths: np.ndarray,
        teacher_lengths: np.ndarray,
        has_stop: bool,
    ) -> None:
        self.student_ids, self.teacher_ids, self.has_stop = student_ids, teacher_ids, has_stop
        self.student_end = _ends(student_ids, student_lengths, has_stop)
        self.teacher_end = _ends(teacher_ids, teacher_lengths, has_stop)
        self.student_start, self.teacher_start = [0, *self.student_end[:-1]], [0, *self.teacher_end[:-1]]

    def teacher_token_at(self, byte: int) -> int:
        """The teacher token that covers a byte."""
        return int(np.searchsorted(self.teacher_end, byte, "right"))

    def teacher_ending_by(self, byte: int) -> int:
        """How many teacher tokens end by a byte."""
        return int(np.searchsorted(self.teacher_end, byte, "right"))

    def is_stop(self, teacher_token: int) -> bool:
        return self.has_stop and teacher_token == len(self.teacher_ids) - 1

    def teacher_before(self, token: int) -> tuple[int, ...]:
        """A few teacher tokens before one."""
        return tuple(self.teacher_ids[max(token - LOOK_BACK, 0) : token])

    def student_before(self, token: int) -> tuple[int, ...]:
        return tuple(self.student_ids[max(token - LOOK_BACK, 0) : token])

    def written(self, i: int, byte: int) -> tuple[tuple[int, ...], int]:
        """The student tokens before token i from the one that covers a byte, and their bytes before it."""
        first = i - 1
        while self.student_start[first] > byte:
            first -= 1
        return tuple(self.student_ids[first:i]), byte - self.student_start[first]


def _ends(ids: list[int], lengths: np.ndarray, has_stop: bool) -> list[int]:
    sizes = lengths[ids].tolist()
    if has_stop:
        sizes[-1] = 1
    return list(accumulate(sizes))


def _stretches(alignment: UnitAlignment) -> Iterator[tuple[int, int]]:
    """(first, last) of neighbouring supervised units."""
    units_U6, found = alignment.units_U6, None
    for unit in np.flatnonzero(alignment.supervised_U).tolist():
        row = units_U6[unit]
        if found is not None:
            before = units_U6[found[1]]
            if before[STUDENT_END] == row[STUDENT_START] and before[TEACHER_END] == row[TEACHER_START]:
                found = found[0], unit
                continue
            yield found
        found = unit, unit
    if found is not None:
        yield found
