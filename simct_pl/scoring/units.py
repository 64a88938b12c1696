"""From alignments to row indices: which logit rows of each side make up which unit, over any number of responses.

In: UnitAlignments and where each response's rows start on both sides. Out: UnitRows, flat arrays sorted by unit, which
the chunker slices. Responses only share these arrays; no unit ever crosses from one response into another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from simct_pl.tokenization.shared_vocab import SharedVocab
from simct_pl.types import STUDENT_END, STUDENT_START, TEACHER_END, TEACHER_START, UnitAlignment


@dataclass(frozen=True)
class UnitRows:
    """The supervised units of some responses, flattened (all int64, on one device).

    student_rows_N, student_ids_N, student_unit_N: row of the student's logits, realised id and unit of each student
        token.
    teacher_rows_M, teacher_ids_M, teacher_unit_M: the same for the teacher.
    student_first_U, teacher_first_U: position in N and M of each unit's first token.
    column_U: shared column that spells the whole unit, or -1 (then the unit gets a column of its own).
    one_to_one_U: bool, one token on each side.
    prefix_unit_P, prefix_column_P: shared columns that are proper byte prefixes of a unit that is not a shared token.
    """

    student_rows_N: Tensor
    student_ids_N: Tensor
    student_unit_N: Tensor
    teacher_rows_M: Tensor
    teacher_ids_M: Tensor
    teacher_unit_M: Tensor
    student_first_U: Tensor
    teacher_first_U: Tensor
    column_U: Tensor
    one_to_one_U: Tensor
    prefix_unit_P: Tensor
    prefix_column_P: Tensor

    @property
    def num_units(self) -> int:
        return len(self.column_U)

    def to(self, device: torch.device) -> UnitRows:
        return UnitRows(**{name: tensor.to(device, non_blocking=True) for name, tensor in vars(self).items()})

    def slice(self, start: int, end: int) -> UnitRows:
        """Units start:end, with N, M, P and the unit numbers counted from the slice's beginning."""
        students = slice(*_span(self.student_unit_N, start, end))
        teachers = slice(*_span(self.teacher_unit_M, start, end))
        prefixes = slice(*_span(self.prefix_unit_P, start, end))
        return UnitRows(
            student_rows_N=self.student_rows_N[students],
            student_ids_N=self.student_ids_N[students],
            student_unit_N=self.student_unit_N[students] - start,
            teacher_rows_M=self.teacher_rows_M[teachers],
            teacher_ids_M=self.teacher_ids_M[teachers],
            teacher_unit_M=self.teacher_unit_M[teachers] - start,
            student_first_U=self.student_first_U[start:end] - students.start,
            teacher_first_U=self.teacher_first_U[start:end] - teachers.start,
            column_U=self.column_U[start:end],
            one_to_one_U=self.one_to_one_U[start:end],
            prefix_unit_P=self.prefix_unit_P[prefixes] - start,
            prefix_column_P=self.prefix_column_P[prefixes],
        )


def _span(unit_N: Tensor, start: int, end: int) -> tuple[int, int]:
    """Where the entries of units start:end begin and end in a sorted unit array."""
    edges = torch.searchsorted(unit_N, torch.tensor([start, end], device=unit_N.device))
    return int(edges[0]), int(edges[1])


def build_unit_rows(
    alignments: Sequence[UnitAlignment],
    shared_vocab: SharedVocab,
    student_offsets: Sequence[int] | None = None,
    teacher_offsets: Sequence[int] | None = None,
) -> UnitRows:
    """Flatten the supervised units of some responses.

    student_offsets, teacher_offsets: the row at which each response's first token is predicted; by default responses
    follow one another without gaps.
    """
    if student_offsets is None:
        student_offsets = np.cumsum([0, *(a.num_student_tokens for a in alignments)])[:-1].tolist()
    if teacher_offsets is None:
        teacher_offsets = np.cumsum([0, *(a.num_teacher_tokens for a in alignments)])[:-1].tolist()
    columns, students, teachers = [], [], []
    prefix_units: list[int] = []
    prefix_columns: list[int] = []
    num_units = 0
    for alignment, student_offset, teacher_offset in zip(alignments, student_offsets, teacher_offsets, strict=True):
        units_U6 = alignment.units_U6[alignment.supervised_U]
        column_U = _unit_columns(alignment, units_U6, shared_vocab, num_units, prefix_units, prefix_columns)
        students.append(_side(units_U6[:, [STUDENT_START, STUDENT_END]], alignment.student_ids_S, student_offset))
        teachers.append(_side(units_U6[:, [TEACHER_START, TEACHER_END]], alignment.teacher_ids_T, teacher_offset))
        columns.append(column_U)
        num_units += len(units_U6)
    student_rows_N, student_ids_N, student_length_U = _concatenate(students)
    teacher_rows_M, teacher_ids_M, teacher_length_U = _concatenate(teachers)
    arrays = {
        "student_rows_N": student_rows_N,
        "student_ids_N": student_ids_N,
        "student_unit_N": np.repeat(np.arange(num_units), student_length_U),
        "teacher_rows_M": teacher_rows_M,
        "teacher_ids_M": teacher_ids_M,
        "teacher_unit_M": np.repeat(np.arange(num_units), teacher_length_U),
        "student_first_U": np.cumsum(student_length_U) - student_length_U,
        "teacher_first_U": np.cumsum(teacher_length_U) - teacher_length_U,
        "column_U": np.concatenate([np.empty(0, np.int64), *columns]),
        "one_to_one_U": (student_length_U == 1) & (teacher_length_U == 1),
        "prefix_unit_P": np.asarray(prefix_units, np.int64),
        "prefix_column_P": np.asarray(prefix_columns, np.int64),
    }
    return UnitRows(**{name: torch.from_numpy(array) for name, array in arrays.items()})


def _side(span_U2: np.ndarray, ids: np.ndarray, offset: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(rows, ids, lengths) of one side's tokens that lie in units, in unit order."""
    length_U = span_U2[:, 1] - span_U2[:, 0]
    token_N = np.repeat(span_U2[:, 0], length_U) + _ranges(length_U)
    return token_N + offset, ids[token_N], length_U


def _ranges(length_U: np.ndarray) -> np.ndarray:
    """0..l-1 for each length l, concatenated."""
    return np.arange(length_U.sum()) - np.repeat(np.cumsum(length_U) - length_U, length_U)


def _concatenate(parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> list[np.ndarray]:
    empty = np.empty(0, np.int64)
    return [np.concatenate([empty, *(part[i] for part in parts)]) for i in range(3)]


def _unit_columns(
    alignment: UnitAlignment,
    units_U6: np.ndarray,
    shared_vocab: SharedVocab,
    first_unit: int,
    prefix_units: list[int],
    prefix_columns: list[int],
) -> np.ndarray:
    """Column of each unit, or -1; appends the prefix columns of the units that have none.

    A 1:1 unit is settled by ids. Any other unit, too, may spell a shared token (a student that sampled `4`,`7` where
    both vocabularies own `47`): it is that token, by its bytes, and gets no second column.
    """
    student_U = shared_vocab.student_columns[alignment.student_ids_S[units_U6[:, STUDENT_START]]]
    teacher_U = shared_vocab.teacher_columns[alignment.teacher_ids_T[units_U6[:, TEACHER_START]]]
    lengths_U2 = units_U6[:, [STUDENT_END, TEACHER_END]] - units_U6[:, [STUDENT_START, TEACHER_START]]
    settled_U = (lengths_U2 == 1).all(1) & (student_U == teacher_U)
    column_U = np.where(settled_U, student_U, -1)
    for unit in np.flatnonzero(column_U < 0):
        ids = alignment.student_ids_S[units_U6[unit, STUDENT_START] : units_U6[unit, STUDENT_END]]
        text = shared_vocab.student.join(ids)
        column_U[unit] = shared_vocab.column(text)
        if column_U[unit] < 0:
            found = shared_vocab.prefix_columns(text)
            prefix_columns.extend(found)
            prefix_units.extend([first_unit + int(unit)] * len(found))
    return column_U
