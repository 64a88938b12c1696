"""From alignments to row indices: which logit rows of each side make up which unit, over any number of responses.

In: UnitAlignments. Out: UnitRows, flat arrays sorted by unit, which the chunker slices. Responses only share these
arrays; no unit ever crosses from one response into another.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from simct_pl.tokenization.shared_vocab import SharedVocab
from simct_pl.types import (
    BYTE_END,
    BYTE_START,
    STUDENT_END,
    STUDENT_START,
    TEACHER_END,
    TEACHER_START,
    UnitAlignment,
)

if TYPE_CHECKING:
    from simct_pl.losses.token_paths.path_builder import PathBuilder
    from simct_pl.losses.token_paths.paths import TokenPaths


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
    paths: of the N student tokens, for objectives that follow them (Objective.path_builder); their teacher rows may lie
        in neighbouring units of the same response.
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
    paths: TokenPaths | None = None

    @property
    def num_units(self) -> int:
        return len(self.column_U)

    @property
    def read_rows_X(self) -> Tensor:
        """The teacher's rows that an objective reads, ascending: those of the units, and of the paths beside them."""
        if self.paths is None:
            return self.teacher_rows_M
        return torch.unique(torch.cat([self.teacher_rows_M, self.paths.step_row_P]))

    def to(self, device: torch.device) -> UnitRows:
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        moved: dict[str, Any] = {
            name: part if part is None else part.to(device, non_blocking=True) for name, part in parts.items()
        }
        return UnitRows(**moved)

    def slice(self, start: int, end: int) -> UnitRows:
        """Units start:end, with N, M, P and the unit numbers counted from the slice's beginning. Best on the CPU."""
        students = _token_span(self.student_first_U, len(self.student_ids_N), start, end)
        teachers = _token_span(self.teacher_first_U, len(self.teacher_ids_M), start, end)
        prefixes = slice(*torch.searchsorted(self.prefix_unit_P, torch.tensor([start, end])).tolist())
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
            paths=None if self.paths is None else self.paths.slice(students.start, students.stop),
        )


def _token_span(first_U: Tensor, num_tokens: int, start: int, end: int) -> slice:
    edges = [int(first_U[unit]) if unit < len(first_U) else num_tokens for unit in (start, end)]
    return slice(*edges)


def unit_bounds(rows: UnitRows, max_rows: int) -> Iterator[tuple[int, int]]:
    """Cut the units, in order, into ranges with at most max_rows rows a side; a longer unit is a range of its own."""
    sides = ((rows.student_first_U, len(rows.student_ids_N)), (rows.teacher_first_U, len(rows.teacher_ids_M)))
    edges = [np.append(first_U.numpy(), num_tokens) for first_U, num_tokens in sides]
    start = 0
    while start < rows.num_units:
        fits = min(int(np.searchsorted(edge, edge[start] + max_rows, "right")) - 1 for edge in edges)
        end = max(fits, start + 1)
        yield start, end
        start = end


def build_unit_rows(
    alignments: Sequence[UnitAlignment],
    shared_vocab: SharedVocab,
    *,
    with_prefixes: bool = True,
    path_builder: PathBuilder | None = None,
) -> UnitRows:
    """Flatten the supervised units of some responses, whose rows follow one another without gaps on both sides.

    with_prefixes: list the prefix columns too, which takes time and which few objectives read
        (Objective.uses_prefixes).
    path_builder: makes the paths, for objectives that follow them (Objective.path_builder).
    """
    columns, students, teachers, prefix_units, prefix_columns = [], [], [], [], []
    num_units = student_offset = teacher_offset = 0
    for alignment in alignments:
        units_U6 = alignment.units_U6[alignment.supervised_U]
        column_U = _unit_columns(alignment, units_U6, shared_vocab)
        if with_prefixes:
            unit_P, column_P = _prefix_columns(alignment, units_U6, column_U, shared_vocab)
            prefix_units.append(unit_P + num_units)
            prefix_columns.append(column_P)
        students.append(_side(units_U6[:, [STUDENT_START, STUDENT_END]], alignment.student_ids_S, student_offset))
        teachers.append(_side(units_U6[:, [TEACHER_START, TEACHER_END]], alignment.teacher_ids_T, teacher_offset))
        columns.append(column_U)
        num_units += len(units_U6)
        student_offset += alignment.num_student_tokens
        teacher_offset += alignment.num_teacher_tokens
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
        "column_U": _joined(columns),
        "one_to_one_U": (student_length_U == 1) & (teacher_length_U == 1),
        "prefix_unit_P": _joined(prefix_units),
        "prefix_column_P": _joined(prefix_columns),
    }
    tensors: dict[str, Any] = {name: torch.from_numpy(array) for name, array in arrays.items()}
    return UnitRows(**tensors, paths=None if path_builder is None else path_builder.build(alignments))


def _side(span_U2: np.ndarray, ids: np.ndarray, offset: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(rows, ids, lengths) of one side's tokens that lie in units, in unit order."""
    length_U = span_U2[:, 1] - span_U2[:, 0]
    token_N = np.repeat(span_U2[:, 0], length_U) + _ranges(length_U)
    return token_N + offset, ids[token_N], length_U


def _ranges(length_U: np.ndarray) -> np.ndarray:
    """0..l-1 for each length l, concatenated."""
    return np.arange(length_U.sum()) - np.repeat(np.cumsum(length_U) - length_U, length_U)


def _concatenate(parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> list[np.ndarray]:
    return [_joined([part[i] for part in parts]) for i in range(3)]


def _joined(arrays: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.empty(0, np.int64), *arrays])


def _unit_columns(alignment: UnitAlignment, units_U6: np.ndarray, shared_vocab: SharedVocab) -> np.ndarray:
    """Column of each unit, int64 [U], or -1.

    A 1:1 unit is settled by ids. Any other unit, too, may spell a shared token (a student that sampled `4`,`7` where
    both vocabularies own `47`): it is that token, by its bytes, and gets no second column.
    """
    student_U = shared_vocab.student_columns[alignment.student_ids_S[units_U6[:, STUDENT_START]]]
    teacher_U = shared_vocab.teacher_columns[alignment.teacher_ids_T[units_U6[:, TEACHER_START]]]
    lengths_U2 = units_U6[:, [STUDENT_END, TEACHER_END]] - units_U6[:, [STUDENT_START, TEACHER_START]]
    settled_U = (lengths_U2 == 1).all(1) & (student_U == teacher_U)
    column_U = np.where(settled_U, student_U, -1)
    open_E = np.flatnonzero(column_U < 0)
    column_U[open_E] = [shared_vocab.column(text) for text in _unit_texts(alignment, units_U6[open_E], shared_vocab)]
    return column_U


def _prefix_columns(
    alignment: UnitAlignment, units_U6: np.ndarray, column_U: np.ndarray, shared_vocab: SharedVocab
) -> tuple[np.ndarray, np.ndarray]:
    """(unit, column) of each shared token that is a proper byte prefix of a unit without a column."""
    open_E = np.flatnonzero(column_U < 0)
    found = [shared_vocab.prefix_columns(text) for text in _unit_texts(alignment, units_U6[open_E], shared_vocab)]
    columns_P = np.asarray([column for columns in found for column in columns], np.int64)
    return np.repeat(open_E, [len(columns) for columns in found]), columns_P


def _unit_texts(alignment: UnitAlignment, units_E6: np.ndarray, shared_vocab: SharedVocab) -> list[bytes]:
    """The bytes of some units."""
    text = alignment.text
    texts = [text[start:end] for start, end in units_E6[:, [BYTE_START, BYTE_END]].tolist()]
    if texts and units_E6[0, BYTE_START] == 0:  # its tokens may begin with a dummy space that is not in the text
        texts[0] = shared_vocab.student.join(alignment.student_ids_S[slice(*units_E6[0, [STUDENT_START, STUDENT_END]])])
    return texts
