"""From proposals to paths: where units start in their responses, and what each candidate is in either model's tokens.

In: aligned responses, and the proposals of both directions. Out: the paths that each model reads, and the paths of each
unit that the objective carves. All on the host.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import numpy as np
from torch import Tensor

from simct_pl.scoring.aligned import AlignedBatch
from simct_pl.scoring.paths import PathPair, PathRows, UnitPath
from simct_pl.scoring.proposals import Continuations, Proposal
from simct_pl.scoring.tree import Path
from simct_pl.tokenization.bytes import TokenBytes
from simct_pl.types import STUDENT_START, TEACHER_START


class UnitPlaces:
    """The graded units of some responses.

    response_U: int64, to which response each belongs. texts: the bytes of each unit that is no shared token, else b"".
    student_first_U, teacher_first_U: row of the state that predicts a unit's first token.

    Args:
        aligned: the responses. student_table: the student's bytes.
    """

    def __init__(self, aligned: AlignedBatch, student_table: TokenBytes) -> None:
        rows = aligned.rows
        self.response_U, self._student_start_U, self._teacher_start_U = _starts(aligned)
        self.student_first_U = rows.student_rows_N[rows.student_first_U]
        self.teacher_first_U = rows.teacher_rows_M[rows.teacher_first_U]
        self._own_units: list[int] = (rows.column_U < 0).nonzero().squeeze(1).tolist()
        self._student_ids = _ids_of(self._own_units, rows.student_first_U, rows.student_ids_N)
        self._teacher_ids = _ids_of(self._own_units, rows.teacher_first_U, rows.teacher_ids_M)
        self.texts = [b""] * rows.num_units
        for unit, ids in zip(self._own_units, self._student_ids, strict=True):
            self.texts[unit] = student_table.join(ids)

    def student_paths(self, by_teacher: Sequence[Proposal]) -> list[Path]:
        """What the student has to read."""
        return _paths(self.response_U, self._student_start_U, by_teacher)

    def teacher_paths(self, by_student: Sequence[Proposal]) -> list[Path]:
        """What the teacher has to read."""
        return _paths(self.response_U, self._teacher_start_U, by_student)

    def path_pair(
        self, by_student: Sequence[Proposal], by_teacher: Sequence[Proposal], config: Continuations
    ) -> PathPair:
        """All path candidates of both sides; sources number by_student, then by_teacher; a unit's own slot is last."""
        slots = [*_slots(by_student, 0), *_slots(by_teacher, config.student_k)]
        units = [proposal.unit for proposal in (*by_student, *by_teacher)]
        tokens = [[(proposal.token_id,) for proposal in proposals] for proposals in (by_student, by_teacher)]
        spellings = [[proposal.spelling for proposal in proposals] for proposals in (by_student, by_teacher)]
        sides = []
        for own_ids, continuations in (
            (self._student_ids, tokens[0] + spellings[1]),
            (self._teacher_ids, spellings[0] + tokens[1]),
        ):
            own = [UnitPath(u, config.num_slots, ids, -1) for u, ids in zip(self._own_units, own_ids, strict=True)]
            others = map(UnitPath, units, slots, continuations, range(len(units)))
            sides.append(PathRows.build(sorted([*own, *others])))
        student, teacher = sides
        return PathPair(student, teacher, config.num_slots + 1)


def _starts(aligned: AlignedBatch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(response, student start, teacher start) of each graded unit; starts count from the response's first token."""
    units = [alignment.units_U6[alignment.supervised_U] for alignment in aligned.alignments]
    units_U6 = np.concatenate([np.empty((0, 6), np.int64), *units])
    response_U = np.repeat(np.arange(len(units)), np.asarray([len(part) for part in units], np.int64))
    return response_U, units_U6[:, STUDENT_START], units_U6[:, TEACHER_START]


def _ids_of(units: Sequence[int], first_U: Tensor, ids_N: Tensor) -> list[tuple[int, ...]]:
    edges, ids = [*first_U.tolist(), len(ids_N)], ids_N.tolist()
    return [tuple(ids[edges[unit] : edges[unit + 1]]) for unit in units]


def _paths(response_U: np.ndarray, start_U: np.ndarray, proposals: Sequence[Proposal]) -> list[Path]:
    return [Path(int(response_U[p.unit]), int(start_U[p.unit]), p.spelling) for p in proposals]


def _slots(proposals: Sequence[Proposal], first: int) -> list[int]:
    """Each unit's proposals, in order, take the slots from `first` on."""
    groups = (list(group) for _, group in groupby(proposals, key=lambda proposal: proposal.unit))
    return [first + i for group in groups for i in range(len(group))]
