"""From the log-probability of every id to that of every shared column: a gather, and a log-sum-exp where several ids
count for one column.

Written as one autograd function, because the composition of torch's own would walk the whole vocabulary a dozen times.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from simct_pl.scoring.tables import Merge, SideTables

# The shift of a column's log-sum-exp is its own log-probability, but no less than this: then exp(member - shift) cannot
# overflow, and in fp32 only what a column gains below exp(-147) is lost.
LOWEST_SHIFT = -60.0


def column_logprobs(first_logp_UK: Tensor, tables: SideTables, *, marginal: bool) -> Tensor:
    """Log-probability of each shared column, [U, V], from that of every id.

    The stop column is the event "any stop id"; with `marginal`, every column is its whole bucket.
    """
    merge = tables.buckets if marginal else tables.stops
    columns_UV: Tensor = _ColumnLogProbs.apply(first_logp_UK, tables.ids_V, merge)
    return columns_UV


class _ColumnLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logp_UK: Tensor, ids_V: Tensor, merge: Merge) -> Tensor:
        column_UV = logp_UK.index_select(1, ids_V)
        if len(merge.ids_E):
            own_UP = column_UV.index_select(1, merge.columns_P)
            shift_UP = own_UP.clamp_min(LOWEST_SHIFT)
            member_UE = logp_UK.index_select(1, merge.ids_E).sub_(shift_UP.index_select(1, merge.group_E)).exp_()
            head_UP = (own_UP - shift_UP).exp_()
            sum_UP = head_UP.index_add(1, merge.group_E, member_UE)
            column_UV.index_copy_(1, merge.columns_P, torch.maximum(sum_UP.log().add_(shift_UP), own_UP))
            ctx.save_for_backward(head_UP, member_UE, sum_UP)
        ctx.num_ids, ctx.ids_V, ctx.merge = logp_UK.shape[1], ids_V, merge
        return column_UV

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_UV: Tensor) -> tuple[Tensor, None, None]:
        """d column / d id = p(id) / p(column): 1 for a column of a single id."""
        ids_V, merge = ctx.ids_V, ctx.merge
        grad_UK = grad_UV.new_zeros(len(grad_UV), ctx.num_ids).index_copy_(1, ids_V, grad_UV)
        if len(merge.ids_E):
            head_UP, member_UE, sum_UP = ctx.saved_tensors
            # An impossible column has no gradient, instead of 0 / 0.
            scale_UP = grad_UV.index_select(1, merge.columns_P).div_(sum_UP.clamp_min(torch.finfo(sum_UP.dtype).tiny))
            grad_UK.index_copy_(1, ids_V[merge.columns_P], head_UP * scale_UP)
            grad_UK.index_copy_(1, merge.ids_E, scale_UP.index_select(1, merge.group_E).mul_(member_UE))
        return grad_UK, None, None
