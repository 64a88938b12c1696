"""The loss of an objective in two hidden spaces: four matrices of logits, from the same chunker as everybody's.

In: both models' states. Out: the loss sum and its statistics. Beside the two models' own logits there are those that
each head makes of the other model's translated states.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from simct_pl.losses.base import PostedUnits, UnitChunk, UnitLosses
from simct_pl.losses.dual_space import DualSpaceChunk, DualSpaceObjective, PairStates
from simct_pl.losses.inputs.vocab_tables import PairTables
from simct_pl.models.lm_head import LMHead
from simct_pl.training.anchor import AnchorStates
from simct_pl.training.chunked_loss import sum_over_chunks
from simct_pl.training.logit_source import LogitSource
from simct_pl.types import UnitStats


def dual_space_loss(
    states: PairStates,
    *,
    student_head: LMHead,
    teacher_head: LMHead,
    objective: DualSpaceObjective,
    projectors: nn.Module,
    tables: PairTables,
    chunk_tokens: int = 1024,
    strip_bytes: int | None = None,
    anchor: AnchorStates | None = None,
) -> tuple[Tensor, UnitStats]:
    """Sum of the objective over all units, and its statistics: chunked_loss for states that are translated first.

    Returns:
        (loss_sum, stats), see sum_over_chunks. loss_sum always runs through all of the projectors, as well as the
        student, so that ranks on which nothing aligns keep collectives in step.
    """
    states = replace(states, teacher=replace(states.teacher, hidden_NH=states.teacher.hidden_NH.detach()))
    # Translated once, whole: that is [rows x width], and it is the heads that must be taken in chunks.
    in_student_NH, in_teacher_MH = objective.translate(projectors, states)

    def compute(logits: Sequence[Tensor], posted: PostedUnits) -> tuple[UnitChunk, UnitLosses]:
        student_NK, teacher_MK, in_student_NK, in_teacher_MK = logits
        units = posted.chunk(student_NK, teacher_MK, tables)
        return units, objective(DualSpaceChunk(units, in_student_NK, in_teacher_MK))

    # The student's own logits first, since only the first source's head is trained; and each translated matrix has the
    # rows of the model whose head reads it.
    sources = (
        LogitSource(states.student.hidden_NH, student_head, "student"),
        LogitSource(states.teacher.hidden_NH, teacher_head, "teacher"),
        LogitSource(in_student_NH, student_head, "student"),
        LogitSource(in_teacher_MH, teacher_head, "teacher"),
    )
    loss_sum, stats = sum_over_chunks(sources, states.rows, compute, chunk_tokens, strip_bytes, anchor)
    # A zero that depends on every projector, for ranks whose loss reaches none of them.
    nothing = torch.stack([parameter.flatten()[:0].sum() for parameter in projectors.parameters()]).sum()
    return loss_sum + nothing, stats
