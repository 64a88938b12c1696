"""The chunker of objectives in two hidden spaces: four matrices of logits for a few units at a time.

As in simct_pl.training.chunked_loss, no tensor of [response x vocabulary] exists: a chunk's gradients are taken
at once and turned into those of the states and of the student's head; backward only multiplies by the gradient that
arrives.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from simct_pl.losses.base import UnitChunk
from simct_pl.losses.dual_space import DualSpaceChunk, DualSpaceObjective, PairStates
from simct_pl.losses.inputs.logprobs import at_least_fp32
from simct_pl.losses.inputs.unit_rows import UnitRows, unit_bounds
from simct_pl.losses.inputs.vocab_tables import PairTables
from simct_pl.models.lm_head import LMHead
from simct_pl.training.unit_stats import StatsWriter, unit_stats
from simct_pl.types import UnitStats

# At most this much of one [rows x vocabulary] fp32 matrix exists; a dozen such matrices live at a time.
CHUNK_BYTES = 128 * 2**20


def dual_space_loss(
    states: PairStates,
    *,
    student_head: LMHead,
    teacher_head: LMHead,
    objective: DualSpaceObjective,
    projectors: nn.Module,
    tables: PairTables,
    chunk_tokens: int = 1024,
) -> tuple[Tensor, UnitStats]:
    """Sum of the objective over all units, and its statistics: chunked_loss for states that are translated first.

    Under autocast the student's products run in its dtype, otherwise in that of the head's weight; everything after
    the projection is at least fp32.

    Returns:
        (loss_sum, stats). loss_sum can run backward once. It always runs through all of the projectors, as well as the
        student, so that ranks on which nothing aligns keep collectives in step.
    """
    states = replace(states, teacher=replace(states.teacher, hidden_NH=states.teacher.hidden_NH.detach()))
    in_student_NH, in_teacher_MH = objective.translate(projectors, states)
    projection = student_head.projection
    like = at_least_fp32(states.student.hidden_NH.new_zeros(0, dtype=projection.weight.dtype))
    stats = UnitStats.allocate(states.rows.num_units, len(states.rows.student_ids_N), like)
    work = _Work(
        states.teacher.hidden_NH,
        states.rows,
        student_head,
        teacher_head,
        objective,
        tables,
        chunk_tokens,
        stats,
        with_gradients=torch.is_grad_enabled(),
    )
    loss_sum: Tensor = _DualSpaceLoss.apply(
        states.student.hidden_NH, projection.weight, projection.bias, in_student_NH, in_teacher_MH, work
    )
    anchor = torch.stack([parameter.flatten()[:0].sum() for parameter in projectors.parameters()]).sum()
    return loss_sum + anchor, stats


@dataclass(frozen=True)
class _Work:
    """What stays the same from chunk to chunk; stats is written while they run."""

    teacher_hidden_MH: Tensor
    rows: UnitRows
    student_head: LMHead
    teacher_head: LMHead
    objective: DualSpaceObjective
    tables: PairTables
    chunk_tokens: int
    stats: UnitStats
    with_gradients: bool

    def parts(self) -> list[UnitRows]:
        widest = max(len(head.projection.weight) for head in (self.student_head, self.teacher_head))
        max_rows = max(1, min(self.chunk_tokens, CHUNK_BYTES // (4 * widest)))
        return [self.rows.slice(start, end) for start, end in unit_bounds(self.rows, max_rows)]


@dataclass(frozen=True)
class _Gradients:
    """Of the loss sum so far. The head's add up over chunks in at least fp32; no row of states is in two chunks."""

    hidden_NH: Tensor
    weight_KH: Tensor
    bias_K: Tensor | None
    in_student_NH: Tensor
    in_teacher_MH: Tensor

    @classmethod
    def zeros(
        cls, hidden_NH: Tensor, weight_KH: Tensor, bias_K: Tensor | None, in_student_NH: Tensor, in_teacher_MH: Tensor
    ) -> _Gradients:
        dtype = torch.promote_types(weight_KH.dtype, torch.float32)
        return cls(
            torch.zeros_like(hidden_NH),
            torch.zeros_like(weight_KH, dtype=dtype),
            None if bias_K is None else torch.zeros_like(bias_K, dtype=dtype),
            torch.zeros_like(in_student_NH),
            torch.zeros_like(in_teacher_MH),
        )

    def add_head(self, grad_NK: Tensor, states_NH: Tensor) -> None:
        self.weight_KH.add_(grad_NK.T @ states_NH)
        if self.bias_K is not None:
            self.bias_K.add_(grad_NK.sum(0, dtype=self.bias_K.dtype))


class _DualSpaceLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_NH: Tensor,
        weight_KH: Tensor,
        bias_K: Tensor | None,
        in_student_NH: Tensor,
        in_teacher_MH: Tensor,
        work: _Work,
    ) -> Tensor:
        device = hidden_NH.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight_KH.dtype
        inputs = hidden_NH, weight_KH, bias_K, in_student_NH, in_teacher_MH
        ctx.gradients = _Gradients.zeros(*inputs) if work.with_gradients else None
        head = weight_KH.to(dtype), None if bias_K is None else bias_K.to(dtype)
        writer = StatsWriter(work.stats)
        with torch.autocast(device, enabled=False):
            for part in work.parts():
                writer.add(_grade(work, part, hidden_NH, head, in_student_NH, in_teacher_MH, ctx.gradients))
        return work.stats.loss_U.sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError("This loss has run backward before and its gradients are spent; compute it again.")
        found = vars(gradients).values()
        return (*(None if gradient is None else gradient.mul_(grad) for gradient in found), None)


def _grade(
    work: _Work,
    part: UnitRows,
    hidden_NH: Tensor,
    head: tuple[Tensor, Tensor | None],
    in_student_NH: Tensor,
    in_teacher_MH: Tensor,
    gradients: _Gradients | None,
) -> UnitStats:
    """Statistics of one chunk; its gradients are added to those so far."""
    row_N, row_M = part.student_rows_N.to(hidden_NH.device), part.teacher_rows_M.to(hidden_NH.device)
    weight_KH, teacher = head[0], work.teacher_head.projection
    states_NH = hidden_NH.index_select(0, row_N).to(weight_KH.dtype)
    leaves = [
        F.linear(states_NH, *head),
        F.linear(in_student_NH.index_select(0, row_N).to(weight_KH.dtype), *head),
        F.linear(in_teacher_MH.index_select(0, row_M).to(teacher.weight.dtype), teacher.weight, teacher.bias),
    ]
    teacher_MK = teacher(work.teacher_hidden_MH.index_select(0, row_M).to(teacher.weight.dtype))
    with torch.set_grad_enabled(gradients is not None):
        leaves = [leaf.detach().requires_grad_(gradients is not None) for leaf in leaves]
        student, teacher_logits = work.student_head.finish, work.teacher_head.finish
        units = UnitChunk(student(leaves[0]), teacher_logits(teacher_MK), part.to(hidden_NH.device), work.tables)
        losses = work.objective(DualSpaceChunk(units, student(leaves[1]), teacher_logits(leaves[2])))
        if gradients is not None:
            own_NK, in_student_NK, in_teacher_MK = torch.autograd.grad(
                losses.loss_U.sum(), leaves, allow_unused=True, materialize_grads=True
            )
            gradients.add_head(own_NK, states_NH)
            gradients.hidden_NH.index_copy_(0, row_N, (own_NK @ weight_KH).to(hidden_NH.dtype))
            translated = gradients.in_student_NH, gradients.in_teacher_MH
            translated[0].index_copy_(0, row_N, (in_student_NK @ weight_KH).to(translated[0].dtype))
            translated[1].index_copy_(0, row_M, (in_teacher_MK @ teacher.weight).to(translated[1].dtype))
    return unit_stats(units, losses)
