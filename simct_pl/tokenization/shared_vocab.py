"""The shared vocabulary: tokens of the two models with equal BYTES, plus stop with stop.

Equal strings would miss most of it and make false pairs: `Ġ`, `▁`, `Ċ` and `<0x0A>` are spellings of bytes. Control
tokens are no text, so they are never shared, whatever their names; the two stops are paired explicitly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from simct_pl.tokenization.bytes import TokenBytes


@dataclass(frozen=True, eq=False)
class SharedVocab:
    """V shared columns, and what each id of either table has to do with them (K = table size of a side).

    student, teacher: the tables. student_ids_V, teacher_ids_V: int64, column → id; sorted by bytes, the stop column
    last. student_columns, teacher_columns: int64 [K], id → column or -1; every stop id has the stop column.
    stop_column: None unless both sides have a stop. *_extra_stop_ids: stop ids beyond the one in *_ids_V; a stop
    event is any of them, so their probability belongs to the stop column.
    """

    student: TokenBytes
    teacher: TokenBytes
    student_ids_V: np.ndarray
    teacher_ids_V: np.ndarray
    student_columns: np.ndarray
    teacher_columns: np.ndarray
    stop_column: int | None
    student_extra_stop_ids: tuple[int, ...]
    teacher_extra_stop_ids: tuple[int, ...]

    @classmethod
    def build(
        cls,
        student: TokenBytes,
        teacher: TokenBytes,
        student_stop_ids: Sequence[int] = (),
        teacher_stop_ids: Sequence[int] = (),
    ) -> SharedVocab:
        """Pair two tables.

        The same tokenizer on both sides gives the identity over ALL ids (control tokens and duplicates too), so that
        a loss over the shared columns is the full-vocabulary loss.
        """
        same_stops = set(student_stop_ids) == set(teacher_stop_ids) or not (student_stop_ids and teacher_stop_ids)
        if student.fingerprint == teacher.fingerprint and same_stops:
            return cls._identity(student, teacher, student_stop_ids, teacher_stop_ids)
        # By what tokens mean, not by what they are called. Stops are left out: they mean no bytes, and are paired
        # below.
        student_id_of = student.ids_by_bytes(without=student_stop_ids)
        teacher_id_of = teacher.ids_by_bytes(without=teacher_stop_ids)
        shared = sorted(student_id_of.keys() & teacher_id_of.keys())  # a set's order differs between processes
        student_ids = [student_id_of[token] for token in shared]
        teacher_ids = [teacher_id_of[token] for token in shared]
        # Stop with stop, in the last column. The first stop of each side stands for all of them.
        stop_column = None
        if student_stop_ids and teacher_stop_ids:
            stop_column = len(shared)
            student_ids.append(student_stop_ids[0])
            teacher_ids.append(teacher_stop_ids[0])
        return cls(
            student,
            teacher,
            np.asarray(student_ids, np.int64),
            np.asarray(teacher_ids, np.int64),
            _columns(student, student_ids, student_stop_ids, stop_column),
            _columns(teacher, teacher_ids, teacher_stop_ids, stop_column),
            stop_column,
            tuple(student_stop_ids[1:]) if stop_column is not None else (),
            tuple(teacher_stop_ids[1:]) if stop_column is not None else (),
        )

    @classmethod
    def _identity(
        cls, student: TokenBytes, teacher: TokenBytes, student_stop_ids: Sequence[int], teacher_stop_ids: Sequence[int]
    ) -> SharedVocab:
        ids_V = np.arange(min(len(student), len(teacher)))  # unequal where one model has fewer rows than ids
        columns = [np.append(ids_V, np.full(len(table) - len(ids_V), -1)) for table in (student, teacher)]
        stop_column = student_stop_ids[0] if student_stop_ids and teacher_stop_ids else None
        return cls(student, teacher, ids_V, ids_V, columns[0], columns[1], stop_column, (), ())

    def __len__(self) -> int:
        return len(self.student_ids_V)

    @cached_property
    def column_of(self) -> dict[bytes, int]:
        """Bytes → column, for every shared token that is text."""
        id_of = self.student.ids_by_bytes()
        columns = self.student_columns
        return {
            token: int(columns[i]) for token, i in id_of.items() if columns[i] >= 0 and columns[i] != self.stop_column
        }

    def column(self, text: bytes) -> int:
        """The column of the shared token that spells this text, or -1."""
        return self.column_of.get(text, -1)

    def prefix_columns(self, text: bytes) -> list[int]:
        """Columns of the shared tokens that are proper, non-empty byte prefixes of a text, shortest first."""
        longest = min(len(text) - 1, self._longest_token)
        found = (self.column_of.get(text[:length]) for length in range(1, longest + 1))
        return [column for column in found if column is not None]

    @cached_property
    def _longest_token(self) -> int:
        return max(map(len, self.column_of), default=0)

    @cached_property
    def student_buckets(self) -> np.ndarray:
        """int64 [K]: id → column of the longest shared token that is a byte prefix of it (itself if shared), or -1."""
        return self._buckets(self.student, self.student_columns)

    @cached_property
    def teacher_buckets(self) -> np.ndarray:
        """The same for the teacher."""
        return self._buckets(self.teacher, self.teacher_columns)

    def _buckets(self, table: TokenBytes, columns: np.ndarray) -> np.ndarray:
        buckets = columns.copy()
        tokens, column_of = table.tokens, self.column_of
        for token_id in np.flatnonzero((columns < 0) & table.is_text_V).tolist():
            token = tokens[token_id]
            # The longest prefix first: the first one that is shared is the bucket.
            for length in range(len(token), 0, -1):
                column = column_of.get(token[:length])
                if column is not None:
                    buckets[token_id] = column
                    break
        return buckets


def _columns(table: TokenBytes, ids: list[int], stop_ids: Sequence[int], stop_column: int | None) -> np.ndarray:
    columns = np.full(len(table), -1, np.int64)
    columns[ids] = np.arange(len(ids))
    if stop_column is not None:
        columns[list(stop_ids)] = stop_column
    return columns
