"""What an objective is: one chunk of aligned units in, one loss a unit out.

Objectives are written for a handful of units and may be dense; the chunker (simct_pl.scoring.chunks) keeps memory flat.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from simct_pl.scoring.candidates import PairTables
from simct_pl.scoring.units import UnitRows


@dataclass(frozen=True)
class UnitChunk:
    """Logits of a few whole units. student_logits_NK, teacher_logits_MK: row i predicts rows.*_ids[i]."""

    student_logits_NK: Tensor
    teacher_logits_MK: Tensor
    rows: UnitRows
    tables: PairTables


@dataclass(frozen=True)
class UnitLosses:
    """Per unit: the loss (0 where not supervised), whether it was supervised, and the log candidate mass of both
    sides.
    """

    loss_U: Tensor
    supervised_U: Tensor
    student_logmass_U: Tensor
    teacher_logmass_U: Tensor


class Objective(ABC):
    """Turns a chunk of units into losses. Gradients must reach the student's logits only."""

    @abstractmethod
    def __call__(self, chunk: UnitChunk) -> UnitLosses:
        """Per-unit losses of a chunk; a unit that the objective does not grade has loss 0 and supervised False."""

    @abstractmethod
    def describe(self) -> dict[str, object]:
        """The variant that runs, for the tracker: names and values."""
