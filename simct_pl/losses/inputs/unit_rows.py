"""From alignments to row indices: which logit rows of each side make up which unit, over any number of responses.

In: UnitAlignments. Out: UnitRows, flat arrays sorted by unit, which the chunker slices. Responses only share these
arrays; no unit ever crosses from one response into another.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import Field, dataclass, field, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from simct_pl.losses.parcel import Parcel
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

UNEVEN_ROWS = 16  # by which even ranges may differ, for units of several tokens

if TYPE_CHECKING:
    from simct_pl.losses.token_paths.path_builder import PathBuilder
    from simct_pl.losses.token_paths.paths import TokenPaths


def _along(axis: str, counts: str = "") -> dict[str, str]:
    """What cutting and joining have to know of a field that has one value for each position of an axis.

    counts: the axis whose positions the values are, if they are any: U, N or M of these arrays, or the rows of the
    student's (S) and the teacher's (T) hidden states. They are shifted with it.
    """
    return {"axis": axis, "counts": counts}


@dataclass(frozen=True)
class UnitRows:
    """The supervised units of some responses, flattened (all int64, on one device).

    student_rows_N, student_ids_N, student_unit_N: row of the student's states, realised id and unit of each student
        token.
    teacher_rows_M, teacher_ids_M, teacher_unit_M: the same for the teacher.
    student_first_U, teacher_first_U: position in N and M of each unit's first token.
    column_U: shared column that spells the whole unit, or -1 (then the unit gets a column of its own).
    one_to_one_U: bool, one token on each side.
    prefix_unit_P, prefix_column_P: shared columns that are proper byte prefixes of a unit that is not a shared token.
    paths: of the N student tokens, for objectives that follow them (Objective.path_builder); always on the CPU. Their
        teacher rows may lie in neighbouring units of the same response.
    """

    student_rows_N: Tensor = field(metadata=_along("N", counts="S"))
    student_ids_N: Tensor = field(metadata=_along("N"))
    student_unit_N: Tensor = field(metadata=_along("N", counts="U"))
    teacher_rows_M: Tensor = field(metadata=_along("M", counts="T"))
    teacher_ids_M: Tensor = field(metadata=_along("M"))
    teacher_unit_M: Tensor = field(metadata=_along("M", counts="U"))
    student_first_U: Tensor = field(metadata=_along("U", counts="N"))
    teacher_first_U: Tensor = field(metadata=_along("U", counts="M"))
    column_U: Tensor = field(metadata=_along("U"))
    one_to_one_U: Tensor = field(metadata=_along("U"))
    prefix_unit_P: Tensor = field(metadata=_along("P", counts="U"))
    prefix_column_P: Tensor = field(metadata=_along("P"))
    paths: TokenPaths | None = None

    @property
    def num_units(self) -> int:
        return len(self.column_U)

    @cached_property
    def read_rows_X(self) -> Tensor:
        """The teacher's rows that an objective reads, ascending: those of the units, and of the paths beside them."""
        if self.paths is None:
            return self.teacher_rows_M
        return torch.unique(torch.cat([self.teacher_rows_M, self.paths.step_row_P]))

    @classmethod
    def of(cls, alignment: UnitAlignment, shared_vocab: SharedVocab, *, with_prefixes: bool = True) -> UnitRows:
        """The supervised units of one response, whose rows of states count from its first token.

        with_prefixes: list the prefix columns too, which takes time and which few objectives read
            (Objective.uses_prefixes).
        """
        # Only supervised units have rows: the tokens of each side that lie in one, unit by unit.
        units_U6 = alignment.units_U6[alignment.supervised_U]
        column_U = _unit_columns(alignment, units_U6, shared_vocab)
        token_N, student_length_U = _tokens_of(units_U6[:, [STUDENT_START, STUDENT_END]])
        token_M, teacher_length_U = _tokens_of(units_U6[:, [TEACHER_START, TEACHER_END]])
        unit_P = column_P = np.empty(0, np.int64)
        if with_prefixes:
            unit_P, column_P = _prefix_columns(alignment, units_U6, column_U, shared_vocab)
        arrays = {
            "student_rows_N": token_N,
            "student_ids_N": alignment.student_ids_S[token_N],
            "student_unit_N": np.repeat(np.arange(len(units_U6)), student_length_U),
            "teacher_rows_M": token_M,
            "teacher_ids_M": alignment.teacher_ids_T[token_M],
            "teacher_unit_M": np.repeat(np.arange(len(units_U6)), teacher_length_U),
            # The sum of all lengths before a unit is where its tokens begin.
            "student_first_U": np.cumsum(student_length_U) - student_length_U,
            "teacher_first_U": np.cumsum(teacher_length_U) - teacher_length_U,
            "column_U": column_U,
            "one_to_one_U": (student_length_U == 1) & (teacher_length_U == 1),
            "prefix_unit_P": unit_P,
            "prefix_column_P": column_P,
        }
        tensors: dict[str, Any] = {name: torch.from_numpy(array) for name, array in arrays.items()}
        return cls(**tensors)

    @classmethod
    def concatenate(cls, parts: Sequence[UnitRows], num_states: Sequence[tuple[int, int]]) -> UnitRows:
        """The units of several responses, whose states follow one another without gaps on both sides.

        num_states: rows of the student's and of the teacher's states that each response has, in a unit or not.
        """
        columns: dict[str, list[Tensor]] = {f.name: [_nothing(f.name)] for f in _arrays()}
        # What the parts so far have on each axis. Values that are positions move on by it; ids and columns are no
        # positions.
        offset = dict.fromkeys("UNMPST", 0)
        for part, (num_student, num_teacher) in zip(parts, num_states, strict=True):
            for f in _arrays():
                value = getattr(part, f.name)
                columns[f.name].append(value + offset[f.metadata["counts"]] if f.metadata["counts"] else value)
            for axis, length in {**part._lengths, "S": num_student, "T": num_teacher}.items():
                offset[axis] += length
        joined: dict[str, Any] = {name: torch.cat(values) for name, values in columns.items()}
        return cls(**joined)

    def to(self, device: torch.device) -> UnitRows:
        """The paths stay where they are."""
        parcel = Parcel()
        posted = self.post(parcel)
        parcel.send(device)
        return posted()

    def post(self, parcel: Parcel) -> Callable[[], UnitRows]:
        """Put all arrays into a parcel; call what is returned when it has been sent. The paths stay where they are."""
        received = parcel.add({f.name: getattr(self, f.name) for f in _arrays()})
        return lambda: UnitRows(**received(), paths=self.paths)

    def slice(self, start: int, end: int) -> UnitRows:
        """Units start:end, with N, M, P and the unit numbers counted from the slice's beginning. Best on the CPU."""
        # The slice on every axis. Prefixes are in the order of their units, so where theirs lie is a search.
        span = {
            "U": slice(start, end),
            "N": _token_span(self.student_first_U, len(self.student_ids_N), start, end),
            "M": _token_span(self.teacher_first_U, len(self.teacher_ids_M), start, end),
            "P": slice(*torch.searchsorted(self.prefix_unit_P, torch.tensor([start, end])).tolist()),
        }
        cut: dict[str, Any] = {}
        for f in _arrays():
            value = getattr(self, f.name)[span[f.metadata["axis"]]]
            counted = span.get(f.metadata["counts"])  # the states stay whole, so rows of them are not shifted
            cut[f.name] = value if counted is None else value - counted.start
        tokens = span["N"]
        return UnitRows(**cut, paths=None if self.paths is None else self.paths.slice(tokens.start, tokens.stop))

    @property
    def _lengths(self) -> dict[str, int]:
        return {f.metadata["axis"]: len(getattr(self, f.name)) for f in _arrays()}


def _arrays() -> list[Field[Any]]:
    """The fields that are arrays."""
    return [f for f in fields(UnitRows) if f.metadata]


def build_unit_rows(
    alignments: Sequence[UnitAlignment],
    shared_vocab: SharedVocab,
    *,
    with_prefixes: bool = True,
    path_builder: PathBuilder | None = None,
) -> UnitRows:
    """The supervised units of some responses, whose states follow one another.

    with_prefixes: see UnitRows.of. path_builder: makes the paths, for objectives that follow them
        (Objective.path_builder).
    """
    parts = [UnitRows.of(alignment, shared_vocab, with_prefixes=with_prefixes) for alignment in alignments]
    rows = UnitRows.concatenate(parts, [(a.num_student_tokens, a.num_teacher_tokens) for a in alignments])
    return rows if path_builder is None else replace(rows, paths=path_builder.build(alignments))


def _nothing(name: str) -> Tensor:
    return torch.empty(0, dtype=torch.bool if name == "one_to_one_U" else torch.int64)


def _token_span(first_U: Tensor, num_tokens: int, start: int, end: int) -> slice:
    edges = [int(first_U[unit]) if unit < len(first_U) else num_tokens for unit in (start, end)]
    return slice(*edges)


def unit_bounds(rows: UnitRows, max_rows: int) -> Iterator[tuple[int, int]]:
    """Cut the units, in order, into ranges with at most max_rows rows a side; a longer unit is a range of its own."""
    sides = ((rows.student_first_U, len(rows.student_ids_N)), (rows.teacher_first_U, len(rows.teacher_ids_M)))
    # Where units begin on each side, and where the last one ends. The farthest edge within max_rows, on the side that
    # is full first, ends the range.
    edges = [np.append(first_U.numpy(), num_tokens) for first_U, num_tokens in sides]
    start = 0
    while start < rows.num_units:
        fits = min(int(np.searchsorted(edge, edge[start] + max_rows, "right")) - 1 for edge in edges)
        end = max(fits, start + 1)
        yield start, end
        start = end


def even_bounds(rows: UnitRows, max_rows: int) -> Iterator[tuple[int, int]]:
    """unit_bounds with ranges of about one size: the last one would cost as much as the others, however small."""
    longest = max(len(rows.student_ids_N), len(rows.teacher_ids_M))
    number = math.ceil(longest / max_rows)
    return unit_bounds(rows, min(max_rows, longest // max(number, 1) + UNEVEN_ROWS))


def _tokens_of(span_U2: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(indices of one side's tokens that lie in units, in unit order; tokens of each unit)."""
    length_U = span_U2[:, 1] - span_U2[:, 0]
    return np.repeat(span_U2[:, 0], length_U) + _ranges(length_U), length_U


def _ranges(length_U: np.ndarray) -> np.ndarray:
    """0..l-1 for each length l, concatenated."""
    return np.arange(length_U.sum()) - np.repeat(np.cumsum(length_U) - length_U, length_U)


def _unit_columns(alignment: UnitAlignment, units_U6: np.ndarray, shared_vocab: SharedVocab) -> np.ndarray:
    """Column of each unit, int64 [U], or -1.

    A 1:1 unit is settled by ids. Any other unit, too, may spell a shared token (a student that sampled `4`,`7` where
    both vocabularies own `47`): it is that token, by its bytes, and gets no second column.
    """
    # The columns of both first tokens. They are the unit's if there are no further tokens and the two agree.
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
