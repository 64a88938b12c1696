"""The chunker: from hidden states to the loss sum of many responses, a few units at a time.

No tensor of [response x vocabulary] ever exists. A chunk's logits are made in a buffer that the next chunk uses again;
its gradients are taken at once, written over the logits, and turned into those of the hidden states and of the head's
weight. Nothing is recomputed in backward, which only multiplies by the gradient that arrives. Chunks are cut between
units, so an objective always sees whole units.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from simct_pl.losses.base import Objective, UnitChunk
from simct_pl.losses.inputs.logprobs import at_least_fp32
from simct_pl.losses.inputs.unit_rows import UnitRows, unit_bounds
from simct_pl.losses.inputs.vocab_tables import PairTables
from simct_pl.models.lm_head import LMHead
from simct_pl.training.unit_stats import StatsWriter, UnitStats

# The objective sees a strip of a chunk: as many units as keep one [rows x vocabulary] fp32 temporary within this many
# bytes. On a CPU temporaries then stay in its caches, and malloc hands out the same pages again instead of mapping new
# ones; a GPU wants large kernels, but a dozen temporaries live at a time.
CPU_STRIP_BYTES = 16 * 2**20
GPU_STRIP_BYTES = 128 * 2**20
# glibc hands freed memory back to the system, and pays for fresh pages at the next allocation, until it has seen a
# large block freed. 32 MiB is the most that teaches it.
TEACHING_BLOCK_BYTES = 31 * 2**20


def chunked_loss(
    student_hidden_NH: Tensor,
    teacher_hidden_MH: Tensor,
    rows: UnitRows,
    *,
    student_head: LMHead,
    teacher_head: LMHead,
    objective: Objective,
    tables: PairTables,
    chunk_tokens: int = 1024,
) -> tuple[Tensor, UnitStats]:
    """Sum of the objective over all units, and its statistics.

    Under autocast the products run in its dtype, otherwise in that of the head's weight; everything after the
    projection is at least fp32, and so is the sum of the weight's gradient over chunks.

    Args:
        student_hidden_NH, teacher_hidden_MH: states whose rows UnitRows refers to; any float dtype.
        rows: the units, best left on the CPU.
        student_head, teacher_head: states → logits.
        chunk_tokens: at most this many rows of either side have logits at a time (a longer unit is a chunk of its own).

    Returns:
        (loss_sum, stats). loss_sum can run backward once. Without any unit it is a zero that still runs backward
        through the student, so that ranks on which nothing aligns keep collectives in step.
    """
    projection = student_head.projection
    like = at_least_fp32(student_hidden_NH.new_zeros(0, dtype=projection.weight.dtype))
    stats = UnitStats.allocate(rows.num_units, len(rows.student_ids_N), like)
    work = _Work(
        teacher_hidden_MH.detach(),
        rows,
        student_head,
        teacher_head,
        objective,
        tables,
        chunk_tokens,
        stats,
        with_gradients=torch.is_grad_enabled(),  # asked here: within an autograd function it is off
    )
    loss_sum: Tensor = _ChunkedLoss.apply(student_hidden_NH, projection.weight, projection.bias, work)
    return loss_sum, stats


@dataclass(frozen=True)
class _Work:
    """What stays the same from chunk to chunk; stats is written while they run."""

    teacher_hidden_MH: Tensor
    rows: UnitRows
    student_head: LMHead
    teacher_head: LMHead
    objective: Objective
    tables: PairTables
    chunk_tokens: int
    stats: UnitStats
    with_gradients: bool


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_NH: Tensor, weight_KH: Tensor, bias_K: Tensor | None, work: _Work) -> Tensor:
        device = hidden_NH.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight_KH.dtype
        needed = tuple(work.with_gradients and need for need in ctx.needs_input_grad)
        sums = _GradientSums.zeros(hidden_NH, weight_KH, bias_K, needed)
        ctx.sums = sums
        with torch.autocast(device, enabled=False):
            return _walk_chunks(
                work, hidden_NH, weight_KH.to(dtype), None if bias_K is None else bias_K.to(dtype), sums
            )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        sums, ctx.sums = ctx.sums, None
        if sums is None:
            raise RuntimeError(
                "This chunked loss has run backward before and its gradients are spent; compute it again."
            )
        # In place: they are [vocabulary x width] large, and nobody else has them.
        found = (sums.hidden_NH, sums.weight_KH, sums.bias_K)
        return (*(None if gradient is None else gradient.mul_(grad) for gradient in found), None)


@dataclass(frozen=True)
class _GradientSums:
    """Gradients of the loss sum so far, None where none is needed. Over chunks they add up in at least fp32."""

    hidden_NH: Tensor | None
    weight_KH: Tensor | None
    bias_K: Tensor | None

    @classmethod
    def zeros(
        cls,
        hidden_NH: Tensor,
        weight_KH: Tensor,
        bias_K: Tensor | None,
        needed: tuple[bool, ...],
    ) -> _GradientSums:
        sum_dtype = torch.promote_types(weight_KH.dtype, torch.float32)
        return cls(
            torch.zeros_like(hidden_NH) if needed[0] else None,
            torch.zeros_like(weight_KH, dtype=sum_dtype) if needed[1] else None,
            torch.zeros_like(bias_K, dtype=sum_dtype) if needed[2] and bias_K is not None else None,
        )

    @property
    def any(self) -> bool:
        return not (self.hidden_NH is None and self.weight_KH is None and self.bias_K is None)

    def add(self, grad_NK: Tensor, states_NH: Tensor, row_N: Tensor, weight_KH: Tensor) -> None:
        """The part of a chunk whose logits have the gradient grad_NK. No row belongs to two chunks."""
        if self.hidden_NH is not None:
            self.hidden_NH.index_copy_(0, row_N, (grad_NK @ weight_KH).to(self.hidden_NH.dtype))
        if self.weight_KH is not None:
            if self.weight_KH.dtype == grad_NK.dtype:
                self.weight_KH.addmm_(grad_NK.T, states_NH)
            else:
                self.weight_KH.add_(grad_NK.T @ states_NH)
        if self.bias_K is not None:
            self.bias_K.add_(grad_NK.sum(0, dtype=self.bias_K.dtype))


def _walk_chunks(
    work: _Work, hidden_NH: Tensor, weight_KH: Tensor, bias_K: Tensor | None, sums: _GradientSums
) -> Tensor:
    """The loss sum; adds to sums and fills work.stats."""
    device, teacher = hidden_NH.device, work.teacher_head.projection
    if device.type == "cpu":
        torch.empty(TEACHING_BLOCK_BYTES, dtype=torch.uint8)
    parts = [work.rows.slice(start, end) for start, end in unit_bounds(work.rows, work.chunk_tokens)]
    student_NK = weight_KH.new_empty(max((len(p.student_ids_N) for p in parts), default=0), len(weight_KH))
    reads = [part.read_rows_X for part in parts]
    teacher_XK = teacher.weight.new_empty(max(map(len, reads), default=0), len(teacher.weight))
    writer = StatsWriter(work.stats)
    for part, read_X in zip(parts, reads, strict=True):
        row_N, row_X = part.student_rows_N.to(device), read_X.to(device)
        states_NH = hidden_NH.index_select(0, row_N).to(weight_KH.dtype)
        states_XH = work.teacher_hidden_MH.index_select(0, row_X).to(teacher.weight.dtype)
        logits_NK = _project(states_NH, weight_KH, bias_K, student_NK[: len(row_N)])
        logits_XK = _project(states_XH, teacher.weight, teacher.bias, teacher_XK[: len(row_X)])
        _grade_chunk(work, part, logits_NK, read_X, logits_XK, writer, sums)
        if sums.any:
            sums.add(logits_NK, states_NH, row_N, weight_KH)
    return work.stats.loss_U.sum()


def _project(states_NH: Tensor, weight_KH: Tensor, bias_K: Tensor | None, out_NK: Tensor) -> Tensor:
    if bias_K is None:
        return torch.mm(states_NH, weight_KH.T, out=out_NK)
    return torch.addmm(bias_K, states_NH, weight_KH.T, out=out_NK)


def _grade_chunk(
    work: _Work,
    part: UnitRows,
    logits_NK: Tensor,
    read_X: Tensor,
    logits_XK: Tensor,
    writer: StatsWriter,
    sums: _GradientSums,
) -> None:
    """Write the statistics. With gradients, those of the student's projected logits take the place of the logits."""
    device = logits_NK.device
    strip_bytes = CPU_STRIP_BYTES if device.type == "cpu" else GPU_STRIP_BYTES
    strip_rows = max(1, strip_bytes // (4 * max(logits_NK.shape[1], logits_XK.shape[1])))
    strips = [part.slice(start, end) for start, end in unit_bounds(part, strip_rows)]
    strips_NK = logits_NK.split([len(rows.student_ids_N) for rows in strips])
    for rows, strip_NK in zip(strips, strips_NK, strict=True):
        own_X = rows.read_rows_X
        # What a strip reads lies together: paths end at gaps between units.
        read = slice(*torch.searchsorted(read_X, own_X[[0, -1]]).add_(torch.tensor([0, 1])).tolist())
        writer.add(_grade_strip(work, rows, strip_NK, read_X[read], logits_XK[read], sums))


def _grade_strip(
    work: _Work, rows: UnitRows, projected_NK: Tensor, read_X: Tensor, projected_XK: Tensor, sums: _GradientSums
) -> UnitStats:
    with torch.set_grad_enabled(sums.any):
        leaf_NK = projected_NK.detach().requires_grad_(sums.any)
        student_NK, teacher_XK = work.student_head.finish(leaf_NK), work.teacher_head.finish(projected_XK)
        chunk = UnitChunk.read(student_NK, teacher_XK, read_X, rows, work.tables)
        losses = work.objective(chunk)
        loss = losses.loss_U.sum()
    if sums.any:
        (gradient_NK,) = torch.autograd.grad(loss, leaf_NK)
        projected_NK.copy_(gradient_NK)
    return UnitStats.of(chunk, losses)
