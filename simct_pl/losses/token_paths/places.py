"""Where the supervised tokens of some responses lie, side by side, and what each student token's question depends on.

In: alignments. Out: Places, flat arrays over all responses. A stretch is a run of neighbouring supervised units: both
sides spell the same bytes in it, and nothing outside of it is ever looked at, so no row of another response, and none
beside a lost span, is ever read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from simct_pl.losses.token_paths.rolling import RollingHash, combined
from simct_pl.losses.token_paths.vocab_links import VocabLinks
from simct_pl.types import STUDENT_END, STUDENT_START, TEACHER_END, TEACHER_START, UnitAlignment

LOOK_BACK = 3  # tokens before T0 that could have been merged with what follows the position


@dataclass(frozen=True, eq=False)
class Flat:
    """One side's tokens, stretch after stretch; a stop counts as one byte.

    ids, row: the token, and its row among those of all responses. start, end: its bytes, counted over all stretches.
    first, stop: where the token's stretch begins and ends, counted in tokens.
    """

    ids: np.ndarray
    row: np.ndarray
    start: np.ndarray
    end: np.ndarray
    first: np.ndarray
    stop: np.ndarray

    @classmethod
    def of(cls, ids: np.ndarray, row: np.ndarray, sizes_R: np.ndarray, lengths: np.ndarray) -> Flat:
        """sizes_R: tokens of each stretch. lengths: bytes of each token."""
        end = np.cumsum(lengths)
        stop = np.repeat(np.cumsum(sizes_R), sizes_R)
        return cls(ids, row, end - lengths, end, stop - np.repeat(sizes_R, sizes_R), stop)

    @cached_property
    def hashes(self) -> RollingHash:
        return RollingHash(self.ids)


@dataclass(frozen=True, eq=False)
class Places:
    """Student tokens i, and what lies around each of them.

    at: the teacher token that covers the position, where token i starts. after: the first teacher token that ends
        behind token i. is_inside: the position lies inside teacher token `at`. origin: the teacher token that begins at
        T0: `at` itself inside a token and at the beginning of a stretch, otherwise the one before. first: the student
        token that covers T0, `outside`: bytes of it before T0.
    ends_early: the stretch has no teacher token for the path's last step. is_stop: `at` is the teacher's stop.
    """

    student: Flat
    teacher: Flat
    at: np.ndarray
    after: np.ndarray
    is_inside: np.ndarray
    origin: np.ndarray
    first: np.ndarray
    outside: np.ndarray
    ends_early: np.ndarray
    is_stop: np.ndarray

    @classmethod
    def of(cls, alignments: Sequence[UnitAlignment], links: VocabLinks) -> Places:
        student, teacher, has_stop_R = _flatten(alignments, links)
        at = np.searchsorted(teacher.end, student.start, "right")
        after = np.searchsorted(teacher.end, student.end, "right")
        is_inside = teacher.start[at] < student.start
        origin = np.where(is_inside, at, np.maximum(at - 1, teacher.first[at]))
        first = np.searchsorted(student.end, teacher.start[origin], "right")
        outside = teacher.start[origin] - student.start[first]
        return cls(
            student=student,
            teacher=teacher,
            at=at,
            after=after,
            is_inside=is_inside,
            origin=origin,
            first=first,
            outside=outside,
            ends_early=after >= teacher.stop[at],
            is_stop=has_stop_R & (at == teacher.stop[at] - 1),
        )

    def keys(self, links: VocabLinks) -> np.ndarray:
        """A hash of all that the question of each student token depends on, uint64 [N]."""
        token = np.arange(len(self.at))
        flags = self.is_inside * 1 + self.ends_early * 2 + self.is_stop * 4 + (self.origin == self.at) * 8
        begins = np.maximum(self.origin - self.is_inside, self.teacher.first[self.at])
        parts = [
            self.student.hashes.of(self.first, token + 1),
            self.teacher.hashes.of(begins, self.after),
            token + 1 - self.first,
            self.after - begins,
            self.at - self.origin,
            self.outside,
            flags,
        ]
        # Tokens further back matter where a longer token could have begun there, which is rare.
        bytes_ = self._text_hashes(links)
        for side, last in ((links.teacher_bytes, self.origin), (links.student_bytes, token - 1)):
            flat = self.teacher if side is links.teacher_bytes else self.student
            begin = np.maximum(last - LOOK_BACK, flat.first[np.minimum(last, len(flat.first) - 1)])
            reaches = np.zeros(len(token), bool)
            for back in range(1, LOOK_BACK + 1):
                start = np.maximum(last - back, begin)
                may = side.prefixes.may_hold(bytes_.of(flat.start[start], self.student.start))
                reaches |= may & (last - back >= begin)
            parts.append(np.where(reaches, flat.hashes.of(begin, np.maximum(last, begin)), np.uint64(0)))
        return combined(*parts)

    def _text_hashes(self, links: VocabLinks) -> RollingHash:
        student = self.student
        text = np.zeros(int(student.end[-1]) if len(student.end) else 0, np.uint8)
        data, _ = links.student.table.gather(student.ids)
        lengths = links.student.table.lengths_V[student.ids]
        place = np.arange(len(data)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        fits = place < np.repeat(student.end - student.start, lengths)
        place += np.repeat(student.start, lengths)
        text[place[fits]] = np.frombuffer(data, np.uint8)[fits]
        return RollingHash(text)


def _flatten(alignments: Sequence[UnitAlignment], links: VocabLinks) -> tuple[Flat, Flat, np.ndarray]:
    """(the student's tokens, the teacher's, whether each student token's stretch ends with the stop)."""
    sides: tuple[list[np.ndarray], list[np.ndarray]] = [], []  # ids of each stretch
    rows: tuple[list[np.ndarray], list[np.ndarray]] = [], []
    has_stop, offsets = [], [0, 0]
    for alignment in alignments:
        stretches = _stretches(alignment)
        for side, (ids, begin, end) in enumerate(
            (
                (alignment.student_ids_S, STUDENT_START, STUDENT_END),
                (alignment.teacher_ids_T, TEACHER_START, TEACHER_END),
            )
        ):
            for first, last in stretches:
                span = slice(alignment.units_U6[first, begin], alignment.units_U6[last, end])
                sides[side].append(ids[span])
                rows[side].append(np.arange(span.start, span.stop) + offsets[side])
            offsets[side] += len(ids)
        has_stop += [alignment.has_stop and last == alignment.num_units - 1 for _, last in stretches]
    stops_R = np.array(has_stop, bool)
    flats, total_R = [], np.zeros(0, np.int64)
    for side, table in enumerate((links.student.table, links.teacher.table)):
        sizes_R = np.array([len(ids) for ids in sides[side]], np.int64)
        ids = np.concatenate([np.zeros(0, np.int64), *sides[side]])
        lengths, last_R = table.lengths_V[ids], np.cumsum(sizes_R) - 1
        lengths[last_R[stops_R]] = 1
        own_R = np.add.reduceat(lengths, last_R - sizes_R + 1) if len(sizes_R) else total_R
        if side == 1:
            assert (own_R == total_R).all(), "supervised units spell the same bytes on both sides"
        total_R = own_R
        flats.append(Flat.of(ids, np.concatenate([np.zeros(0, np.int64), *rows[side]]), sizes_R, lengths))
    sizes_R = np.array([len(ids) for ids in sides[0]], np.int64)
    return flats[0], flats[1], np.repeat(stops_R, sizes_R)


def _stretches(alignment: UnitAlignment) -> list[tuple[int, int]]:
    """(first, last) of neighbouring supervised units."""
    unit_V = np.flatnonzero(alignment.supervised_U)
    if not len(unit_V):
        return []
    units_V6 = alignment.units_U6[unit_V]
    ends_V2, starts_V2 = units_V6[:-1, [STUDENT_END, TEACHER_END]], units_V6[1:, [STUDENT_START, TEACHER_START]]
    breaks = np.flatnonzero((ends_V2 != starts_V2).any(1))
    firsts, lasts = unit_V[np.append(0, breaks + 1)], unit_V[np.append(breaks, len(unit_V) - 1)]
    return list(zip(firsts.tolist(), lasts.tolist(), strict=True))
