"""Where the logits of a chunk come from, and what is made of them: the terms that the chunker and the losses share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from simct_pl.losses.base import PostedUnits, UnitChunk, UnitLosses
from simct_pl.losses.inputs.unit_rows import UnitRows
from simct_pl.models.lm_head import LMHead

# Logits of each source, and the units they belong to → what the statistics need, and the losses.
ComputeLosses = Callable[[Sequence[Tensor], PostedUnits], tuple[UnitChunk, UnitLosses]]


@dataclass(frozen=True, eq=False)
class LogitSource:
    """One matrix of the logits that an objective compares, not yet made.

    states_RH: a row for each response token of `side`, any float dtype. head: reads them. Gradients reach the states
    that autograd asks for, and the head of the first source alone.
    """

    states_RH: Tensor
    head: LMHead
    side: Literal["student", "teacher"]

    def rows_in(self, rows: UnitRows) -> Tensor:
        """The states that an objective reads for some units, ascending; of the teacher's, neighbours may share some."""
        return rows.student_rows_N if self.side == "student" else rows.read_rows_X
