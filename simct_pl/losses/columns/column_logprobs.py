"""From the log-probability of every id to that of every shared column: a gather, and a log-sum-exp where several ids
count for one column.

Written as autograd functions, because the composition of torch's own would walk the whole vocabulary a dozen times. On
a CPU an element that is looked up by index costs as much as several that are passed over in order. Buckets concern
every id, so their probabilities are summed as they are, with one indexed pass each way. Where a bucket is too
improbable for that, and for the few ids that only count for a stop, each column is shifted by its own log-probability.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from simct_pl.losses.inputs.vocab_tables import Merge, SideTables

# The shift of a column's log-sum-exp is its own log-probability, but no less than this: then exp(member - shift) cannot
# overflow, and in fp32 only what a column gains below exp(-147) is lost.
LOWEST_SHIFT = -60.0


def column_logprobs(
    first_logp_UK: Tensor, tables: SideTables, *, marginal: bool, may_wait: bool | None = None
) -> Tensor:
    """Log-probability of each shared column, [U, V], from that of every id.

    The stop column is the event "any stop id"; with `marginal`, every column is its whole bucket. may_wait: the host
    looks whether a bucket underflows; by default if the numbers are its own.
    """
    columns_UV: Tensor
    if not marginal:
        columns_UV = _ColumnLogProbs.apply(first_logp_UK, tables.ids_V, tables.stops)
        return columns_UV
    if not (first_logp_UK.device.type == "cpu" if may_wait is None else may_wait):
        columns_UV = _AnyBucketLogProbs.apply(first_logp_UK, tables.ids_V, tables.bucket_K)
        return columns_UV
    with torch.no_grad():
        # A model's rows may outnumber its tokenizer's ids.
        mass_UK = first_logp_UK[:, : len(tables.bucket_K)].exp()
        mass_UX = _bucket_sums(mass_UK, tables.bucket_K, len(tables.ids_V))
        smallest = mass_UX[:, :-1].amin() if mass_UX[:, :-1].numel() else mass_UX.new_ones(())
    # A bucket whose probabilities underflow would have the log of 0, and 0 / 0 for a gradient.
    if smallest < torch.finfo(mass_UK.dtype).tiny:
        columns_UV = _ColumnLogProbs.apply(first_logp_UK, tables.ids_V, tables.buckets)
    else:
        columns_UV = _BucketLogProbs.apply(first_logp_UK, mass_UK, mass_UX, tables.bucket_K)
    return columns_UV


def _bucket_sums(mass_UK: Tensor, bucket_K: Tensor, num_columns: int) -> Tensor:
    """With one column more than there are, for the ids of no bucket; read through a view afterwards."""
    return mass_UK.new_zeros(len(mass_UK), num_columns + 1).index_add_(1, bucket_K, mass_UK)


def join_stops(mass_UK: Tensor, tables: SideTables) -> Tensor:
    """Masses by id, of which the first stop has that of all stops and the others nothing: the event "any stop id"."""
    stops = tables.stops
    if not len(stops.ids_E):
        return mass_UK
    # The first stop has the column. It takes what the others have, and they are emptied.
    first_E = tables.ids_V[stops.columns_P[stops.group_E]]
    joined_UK = mass_UK.index_add(1, first_E, mass_UK.index_select(1, stops.ids_E))
    return joined_UK.index_fill(1, stops.ids_E, 0.0)


class _BucketLogProbs(torch.autograd.Function):
    """Logs of the bucket masses mass_UX (all above zero), of which the last is nobody's."""

    @staticmethod
    def forward(ctx: Any, logp_UK: Tensor, mass_UK: Tensor, mass_UX: Tensor, bucket_K: Tensor) -> Tensor:
        ctx.num_ids = logp_UK.shape[1]
        ctx.save_for_backward(mass_UK, mass_UX, bucket_K)
        return mass_UX[:, :-1].log()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_UV: Tensor) -> tuple[Tensor, None, None, None]:
        """d column / d id = p(id) / p(column)."""
        mass_UK, mass_UX, bucket_K = ctx.saved_tensors
        # The last column stays 0: ids of no bucket get no gradient.
        scale_UX = torch.zeros_like(mass_UX)
        torch.div(grad_UV, mass_UX[:, :-1], out=scale_UX[:, :-1])
        grad_UK = scale_UX.index_select(1, bucket_K).mul_(mass_UK)
        num_padded = ctx.num_ids - grad_UK.shape[1]
        return F.pad(grad_UK, (0, num_padded)) if num_padded else grad_UK, None, None, None


class _AnyBucketLogProbs(torch.autograd.Function):
    """Of buckets of which some may underflow, without looking which: those are summed again at another scale."""

    @staticmethod
    def forward(ctx: Any, logp_UK: Tensor, ids_V: Tensor, bucket_K: Tensor) -> Tensor:
        num_ids, num_columns = len(bucket_K), len(ids_V)
        ctx.save_for_backward(logp_UK, bucket_K)
        mass_UX = _bucket_sums(logp_UK[:, :num_ids].exp(), bucket_K, num_columns)
        underflows_UX = mass_UX < torch.finfo(mass_UX.dtype).tiny
        scaled_UK = logp_UK[:, :num_ids].sub(LOWEST_SHIFT).exp_()
        low_UX = _bucket_sums(scaled_UK, bucket_K, num_columns).log_().add_(LOWEST_SHIFT)
        del scaled_UK
        column_UX = torch.where(underflows_UX, low_UX, mass_UX.log_())
        # What is lost at that scale too leaves a column at its own log-probability instead of at log 0.
        column_UV = torch.maximum(column_UX[:, :-1], logp_UK.index_select(1, ids_V))
        column_UX[:, :-1] = column_UV
        column_UX[:, -1] = torch.inf  # ids of no bucket have no share in anything
        ctx.column_UX = column_UX
        return column_UV

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_UV: Tensor) -> tuple[Tensor, None, None]:
        """d column / d id = p(id) / p(column)."""
        logp_UK, bucket_K = ctx.saved_tensors
        share_UK = logp_UK[:, : len(bucket_K)] - ctx.column_UX.index_select(1, bucket_K)
        share_UK.exp_().nan_to_num_(0.0)  # an impossible column has no gradient, instead of 0 / 0
        grad_UK = F.pad(grad_UV, (0, 1)).index_select(1, bucket_K).mul_(share_UK)
        num_padded = logp_UK.shape[1] - len(bucket_K)
        return F.pad(grad_UK, (0, num_padded)) if num_padded else grad_UK, None, None


class _ColumnLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logp_UK: Tensor, ids_V: Tensor, merge: Merge) -> Tensor:
        column_UV = logp_UK.index_select(1, ids_V)
        if len(merge.ids_E):
            # log(sum of members) = shift + log(sum of exp(member - shift)), the column's own id first among them.
            own_UP = column_UV.index_select(1, merge.columns_P)
            shift_UP = own_UP.clamp_min(LOWEST_SHIFT)
            member_UE = logp_UK.index_select(1, merge.ids_E).sub_(shift_UP.index_select(1, merge.group_E)).exp_()
            head_UP = (own_UP - shift_UP).exp_()
            sum_UP = head_UP.index_add(1, merge.group_E, member_UE)
            # Where all of it underflows, the maximum leaves the column at its own log-probability instead of at log 0.
            column_UV.index_copy_(1, merge.columns_P, torch.maximum(sum_UP.log().add_(shift_UP), own_UP))
            ctx.save_for_backward(head_UP, member_UE, sum_UP)
        ctx.num_ids, ctx.ids_V, ctx.merge = logp_UK.shape[1], ids_V, merge
        return column_UV

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_UV: Tensor) -> tuple[Tensor, None, None]:
        """d column / d id = p(id) / p(column): 1 for a column of a single id."""
        ids_V, merge = ctx.ids_V, ctx.merge
        # Columns of one id pass their gradient on as it is; then those of several share theirs out.
        grad_UK = grad_UV.new_zeros(len(grad_UV), ctx.num_ids).index_copy_(1, ids_V, grad_UV)
        if len(merge.ids_E):
            head_UP, member_UE, sum_UP = ctx.saved_tensors
            # An impossible column has no gradient, instead of 0 / 0.
            scale_UP = grad_UV.index_select(1, merge.columns_P).div_(sum_UP.clamp_min(torch.finfo(sum_UP.dtype).tiny))
            grad_UK.index_copy_(1, ids_V[merge.columns_P], head_UP * scale_UP)
            grad_UK.index_copy_(1, merge.ids_E, scale_UP.index_select(1, merge.group_E).mul_(member_UE))
        return grad_UK, None, None
