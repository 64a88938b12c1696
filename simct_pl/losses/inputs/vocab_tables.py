"""A pair's shared vocabulary as index tensors, on the device of the logits: what the objectives know of it."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

import numpy as np
import torch
from torch import Tensor

from simct_pl.tokenization.shared_vocab import SharedVocab


@dataclass(frozen=True)
class Merge:
    """Ids whose probability joins that of a column (all int64).

    ids_E: the ids. columns_P: the columns that gain by it, sorted. group_E: for each id, its column's place in
        columns_P.
    """

    ids_E: Tensor
    group_E: Tensor
    columns_P: Tensor

    @classmethod
    def build(cls, ids_E: np.ndarray, columns_E: np.ndarray) -> Merge:
        columns_P, group_E = np.unique(columns_E, return_inverse=True)
        return cls(*(torch.as_tensor(array, dtype=torch.int64) for array in (ids_E, group_E, columns_P)))


@dataclass(frozen=True)
class SideTables:
    """One side's view of the shared vocabulary.

    ids_V: int64, column → id. stops: further stop ids, which count for the stop column. buckets: every id without a
        column that has a bucket, further stop ids included (CandidateRule's `marginal`). bucket_K: int64, id → the
        column that it counts for, its own or by `buckets`, or V.
    """

    ids_V: Tensor
    stops: Merge
    buckets: Merge
    bucket_K: Tensor
    _stop_ids: Tensor | None = field(default=None, init=False, repr=False, compare=False)

    @classmethod
    def build(
        cls, ids_V: np.ndarray, column_K: np.ndarray, bucket_K: np.ndarray, extra_stop_ids: tuple[int, ...]
    ) -> SideTables:
        stops = np.asarray(extra_stop_ids, np.int64)
        owns_column_K = np.zeros(len(column_K), bool)
        owns_column_K[ids_V] = True
        # One past the last column stands for none, so that sums by column can be made with one column too many. A
        # shared token counts for itself.
        merged_K = np.where(bucket_K >= 0, bucket_K, len(ids_V))
        merged_K[ids_V] = np.arange(len(ids_V))
        bucketed = np.flatnonzero(~owns_column_K & (bucket_K >= 0))
        return cls(
            torch.as_tensor(ids_V, dtype=torch.int64),
            Merge.build(stops, column_K[stops]),
            Merge.build(bucketed, bucket_K[bucketed]),
            torch.as_tensor(merged_K, dtype=torch.int64),
        )

    def stop_ids(self, stop_column: int) -> Tensor:
        """The column's own id and the further stops, int64: any of them ends the response."""
        if self._stop_ids is None:
            object.__setattr__(self, "_stop_ids", torch.cat([self.ids_V[stop_column, None], self.stops.ids_E]))
        assert self._stop_ids is not None
        return self._stop_ids

    def to(self, device: torch.device) -> SideTables:
        stops, buckets = (_to(merge, device) for merge in (self.stops, self.buckets))
        return SideTables(self.ids_V.to(device), stops, buckets, self.bucket_K.to(device))


def _to(merge: Merge, device: torch.device) -> Merge:
    return Merge(*(getattr(merge, f.name).to(device) for f in fields(merge)))


@dataclass(frozen=True)
class PairTables:
    """Both sides' tables. stop_column: None unless both sides have a stop."""

    student: SideTables
    teacher: SideTables
    stop_column: int | None

    @classmethod
    def build(cls, shared: SharedVocab, device: torch.device | str = "cpu") -> PairTables:
        student = SideTables.build(
            shared.student_ids_V, shared.student_columns, shared.student_buckets, shared.student_extra_stop_ids
        )
        teacher = SideTables.build(
            shared.teacher_ids_V, shared.teacher_columns, shared.teacher_buckets, shared.teacher_extra_stop_ids
        )
        return cls(student, teacher, shared.stop_column).to(torch.device(device))

    def to(self, device: torch.device) -> PairTables:
        return PairTables(self.student.to(device), self.teacher.to(device), self.stop_column)
