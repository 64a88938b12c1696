"""What an objective is: one chunk of aligned units in, one loss a unit out.

Objectives are written for a handful of units and may be dense; the chunker (simct_pl.training.chunked_loss) keeps
memory flat.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from simct_pl.losses.inputs.logprobs import ModelLogProbs
from simct_pl.losses.inputs.unit_rows import UnitRows
from simct_pl.losses.inputs.vocab_tables import PairTables
from simct_pl.losses.parcel import Parcel

if TYPE_CHECKING:  # they load transformers
    from transformers import PreTrainedModel

    from simct_pl.losses.token_paths.path_builder import PathBuilder
    from simct_pl.losses.token_paths.paths import PathArrays
    from simct_pl.tokenization.pair import TokenizerPair


@dataclass(frozen=True, eq=False)
class UnitChunk:
    """Logits of a few whole units. student_logits_NK, teacher_logits_MK: row i predicts rows.*_ids[i].

    What an objective derives from them through `student` and `teacher` is computed once, also for the statistics.
    path_logits_XK, paths, path_rows_M: with rows.paths, the teacher's rows that paths.step_row_P counts, those paths,
        and where teacher_logits_MK lie among the rows.
    """

    student_logits_NK: Tensor
    teacher_logits_MK: Tensor
    rows: UnitRows
    tables: PairTables
    path_logits_XK: Tensor | None = None
    paths: PathArrays | None = None
    path_rows_M: slice | Tensor | None = None

    @classmethod
    def read(
        cls, student_logits_NK: Tensor, read_logits_XK: Tensor, read_rows_X: Tensor, rows: UnitRows, tables: PairTables
    ) -> UnitChunk:
        """Of rows on the CPU, and the teacher's logits of read_rows_X, ascending, which hold rows.read_rows_X."""
        parcel = Parcel()
        units = PostedUnits.of(rows, read_rows_X, parcel)
        parcel.send(student_logits_NK.device)
        return units.chunk(student_logits_NK, read_logits_XK, tables)

    @cached_property
    def student(self) -> ModelLogProbs:
        rows = self.rows
        return ModelLogProbs(
            self.student_logits_NK, rows.student_ids_N, rows.student_unit_N, rows.student_first_U, self.tables.student
        )

    @cached_property
    def teacher(self) -> ModelLogProbs:
        """Detached: no gradient reaches the teacher."""
        rows, logits_MK = self.rows, self.teacher_logits_MK.detach()
        return ModelLogProbs(
            logits_MK, rows.teacher_ids_M, rows.teacher_unit_M, rows.teacher_first_U, self.tables.teacher
        )


@dataclass(frozen=True, eq=False)
class PostedUnits:
    """A few units whose arrays are in a parcel; what is asked of them must wait until it has been sent.

    rows: theirs, there. paths: theirs on a device, if they have any. rows_M: where the units' own logits lie among
    those that the paths read: a view, or places.
    """

    rows: Callable[[], UnitRows]
    paths: Callable[[torch.device], PathArrays] | None
    rows_M: Callable[[], slice | Tensor]

    @classmethod
    def of(cls, rows: UnitRows, read_rows_X: Tensor, parcel: Parcel) -> PostedUnits:
        """rows, on the CPU. read_rows_X: the teacher's rows whose logits are there, ascending, rows.read_rows_X among
        them.
        """
        sent = rows.post(parcel)
        if rows.paths is None:
            return cls(sent, None, lambda: slice(None))
        place_M = torch.searchsorted(read_rows_X, rows.teacher_rows_M)
        paths = rows.paths.with_rows(read_rows_X).post(parcel)
        first, count = int(place_M[0]) if len(place_M) else 0, len(place_M)
        if count and int(place_M[-1]) - first != count - 1:  # with a gap it is no view
            places = parcel.add({"place_M": place_M})
            return cls(sent, paths, lambda: places()["place_M"])
        return cls(sent, paths, lambda: slice(first, first + count))

    def chunk(self, student_logits_NK: Tensor, read_logits_XK: Tensor, tables: PairTables) -> UnitChunk:
        """With the logits of both sides, on the device that the parcel was sent to."""
        if self.paths is None:
            return UnitChunk(student_logits_NK, read_logits_XK, self.rows(), tables)
        rows_M, read_XK = self.rows_M(), read_logits_XK.detach()
        paths = self.paths(read_XK.device)
        return UnitChunk(student_logits_NK, read_XK[rows_M], self.rows(), tables, read_XK, paths, rows_M)


@dataclass(frozen=True)
class RowStats:
    """Of whole rows of logits, without gradients: their log-sum-exp, and the entropy of the softmax in nats."""

    student_logz_N: Tensor
    student_entropy_N: Tensor
    teacher_logz_M: Tensor


@dataclass(frozen=True)
class UnitLosses:
    """Per unit: the loss (0 where not supervised), whether it was supervised, and the log candidate mass of both
    sides.

    row_stats: what an objective that does not read the chunk's log-probabilities has found out, for the statistics.
    anchor_U: what is minimised beside the objective, added by whoever computes it (simct_pl.training.anchor).
    """

    loss_U: Tensor
    supervised_U: Tensor
    student_logmass_U: Tensor
    teacher_logmass_U: Tensor
    row_stats: RowStats | None = None
    anchor_U: Tensor | None = None

    @classmethod
    def over_everything(cls, loss_U: Tensor, supervised_U: Tensor) -> UnitLosses:
        """Of an objective that leaves nothing of either model's probability out."""
        whole_U = torch.zeros_like(loss_U).detach()
        return cls(loss_U, supervised_U, whole_U, whole_U)


class ObjectiveBase(ABC):
    """What a recipe may name as its objective.

    uses_prefixes: whether it reads UnitRows.prefix_unit_P and prefix_column_P, which are left empty otherwise.
    path_builder: makes UnitRows.paths, for objectives that follow the teacher's path; null for others, and before
        `prepare`.
    projector_lr: peak learning rate of what build_projectors makes; it follows the student's schedule.
    own_responses_only: whether it is right only of responses that the student itself has sampled.
    """

    uses_prefixes: bool = False
    path_builder: PathBuilder | None = None
    projector_lr: float = 1e-3
    own_responses_only: bool = False

    def prepare(self, pair: TokenizerPair) -> None:  # noqa: B027 - most objectives need nothing
        """Make what depends on the two tokenizers alone, before any weights load. By default, nothing.

        Raises:
            SimctError: if the objective cannot supervise this pair.
        """

    def build_projectors(
        self, student: PreTrainedModel, teacher: PreTrainedModel, pair: TokenizerPair
    ) -> nn.Module | None:
        """Parameters that the objective trains beside the student's, by default none.

        They are optimised, sharded and checkpointed with the student, and neither exported nor sent to engines. The
        student is whole still, and the teacher's embeddings and head always are. The same models must give the same
        values, on every rank and in every process.
        """
        return None

    @abstractmethod
    def describe(self) -> dict[str, object]:
        """The variant that runs, for the tracker: names and values."""


class Objective(ObjectiveBase):
    """Turns a chunk of units into losses. Gradients must reach the student's logits only."""

    @abstractmethod
    def __call__(self, chunk: UnitChunk) -> UnitLosses:
        """Per-unit losses of a chunk; a unit that the objective does not supervise has loss 0 and supervised False."""
