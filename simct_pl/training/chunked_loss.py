"""The chunker: from hidden states to the loss sum of many responses, a few units at a time.

No tensor of [response x vocabulary] ever exists. What happens, in order:

1. The units are cut into chunks, between units, so that an objective always sees whole ones.
2. Each source of logits (the student, the teacher; for objectives in two hidden spaces two more) is projected into a
   buffer that the next chunk uses again.
3. The objective sees a strip of the chunk: on a CPU one whose temporaries stay in the caches, on a GPU all of it.
4. The strip's gradients are taken at once and written over its logits.
5. A chunk's gradients become those of its hidden states and of the student's head.

Nothing is recomputed in backward, which only multiplies by the gradient that arrives. FSDP2 gathers the head's weight
within the root module's forward only: run this in there (simct_pl.training.student_with_loss).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from simct_pl.losses.base import Objective, PostedUnits, UnitChunk, UnitLosses
from simct_pl.losses.inputs.logprobs import at_least_fp32
from simct_pl.losses.inputs.unit_rows import UnitRows, even_bounds
from simct_pl.losses.inputs.vocab_tables import PairTables
from simct_pl.losses.parcel import Parcel
from simct_pl.models.lm_head import LMHead
from simct_pl.training.anchor import AnchorStates
from simct_pl.training.gradient_sums import GradientSums
from simct_pl.training.logit_source import ComputeLosses, LogitSource
from simct_pl.training.unit_stats import StatsWriter, unit_stats
from simct_pl.types import UnitStats

# The objective sees a strip of a chunk: as many units as keep one [rows x vocabulary] fp32 temporary within this many
# bytes. On a CPU temporaries then stay in its caches, and malloc hands out the same pages again instead of mapping new
# ones. A GPU wants few and large kernels: 786 rows of 256,000 ids, of which three or four temporaries live at a time.
CPU_STRIP_BYTES = 16 * 2**20
GPU_STRIP_BYTES = 768 * 2**20
# glibc hands freed memory back to the system, and pays for fresh pages at the next allocation, until it has seen a
# large block freed; its dynamic mmap threshold is capped at 32 MiB.
MMAP_THRESHOLD_BYTES = 31 * 2**20


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
    strip_bytes: int | None = None,
    anchor: AnchorStates | None = None,
) -> tuple[Tensor, UnitStats]:
    """Sum of the objective over all units, and its statistics.

    Args:
        student_hidden_NH, teacher_hidden_MH: states whose rows UnitRows refers to; any float dtype.
        rows, chunk_tokens, strip_bytes, anchor, and what is returned: see sum_over_chunks.
        student_head, teacher_head: states → logits.
    """

    def compute(logits: Sequence[Tensor], units: PostedUnits) -> tuple[UnitChunk, UnitLosses]:
        student_NK, read_XK = logits
        chunk = units.chunk(student_NK, read_XK, tables)
        return chunk, objective(chunk)

    sources = (
        LogitSource(student_hidden_NH, student_head, "student"),
        LogitSource(teacher_hidden_MH.detach(), teacher_head, "teacher"),
    )
    return sum_over_chunks(sources, rows, compute, chunk_tokens, strip_bytes, anchor)


def sum_over_chunks(
    sources: Sequence[LogitSource],
    rows: UnitRows,
    compute: ComputeLosses,
    chunk_tokens: int,
    strip_bytes: int | None = None,
    anchor: AnchorStates | None = None,
) -> tuple[Tensor, UnitStats]:
    """Sum of the losses of all units, and their statistics.

    Under autocast the products of the student's head run in autocast's dtype, otherwise in that of its weight; those of
    another head in its weight's. Everything after the projection is at least fp32, and so is the sum of the weight's
    gradient over chunks.

    Args:
        sources: the student's own logits first; its head is trained with it.
        rows: the units, best left on the CPU.
        compute: losses of a few units.
        chunk_tokens: at most this many rows of a source have logits at a time (a longer unit is a chunk of its own).
        strip_bytes: of one [rows x vocabulary] fp32 temporary; what suits the device by default.
        anchor: what the student is held to beside, if anything.

    Returns:
        (loss_sum, stats). loss_sum can run backward once. Without any unit it is a zero that still runs backward
        through the student, so that ranks on which nothing aligns keep collectives in step.
    """
    if anchor is not None:
        sources, compute = anchor.join(sources, compute)
    states_NH, projection = sources[0].states_RH, sources[0].head.projection
    like = at_least_fp32(states_NH.new_zeros(0, dtype=projection.weight.dtype))
    writer = StatsWriter(rows.num_units, len(rows.student_ids_N), like)
    # Whether gradients are wanted is asked here: within an autograd function they are off.
    work = _Work(sources, rows, compute, chunk_tokens, strip_bytes, writer, with_gradients=torch.is_grad_enabled())
    states = [source.states_RH for source in sources]
    loss_sum: Tensor = _ChunkedLoss.apply(work, projection.weight, projection.bias, *states)
    return loss_sum, writer.stats


@dataclass(frozen=True)
class _Work:
    """What stays the same from chunk to chunk; writer gets statistics while they run."""

    sources: Sequence[LogitSource]
    rows: UnitRows
    compute: ComputeLosses
    chunk_tokens: int
    strip_bytes: int | None
    writer: StatsWriter
    with_gradients: bool

    def weights(self, weight_KH: Tensor, bias_K: Tensor | None) -> list[tuple[Tensor, Tensor | None]]:
        """Of each source's head; weight_KH, bias_K: the student's, in the dtype of its products."""
        student = self.sources[0].head.projection
        heads = [source.head.projection for source in self.sources]
        return [(weight_KH, bias_K) if head is student else (head.weight, head.bias) for head in heads]


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, work: _Work, weight_KH: Tensor, bias_K: Tensor | None, *states: Tensor) -> Tensor:
        device = states[0].device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight_KH.dtype
        # All gradients are made here in forward, while a chunk's logits exist; backward has nothing to compute again.
        needed = [work.with_gradients and need for need in ctx.needs_input_grad[1:]]
        sums = GradientSums.zeros(weight_KH, bias_K, states, needed)
        ctx.sums = sums
        # The products' dtype has been chosen above. Autocast must choose nothing after them: the rest is at least fp32.
        with torch.autocast(device, enabled=False):
            weights = work.weights(weight_KH.to(dtype), None if bias_K is None else bias_K.to(dtype))
            return _walk_chunks(work, states, weights, sums)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        # Spent at once: a second backward would multiply what the first has already scaled.
        sums, ctx.sums = ctx.sums, None
        if sums is None:
            raise RuntimeError(
                "This chunked loss has run backward before and its gradients are spent; compute it again."
            )
        # In place: they are [vocabulary x width] large, and nobody else has them.
        found = (sums.weight_KH, sums.bias_K, *sums.states)
        return (None, *(None if gradient is None else gradient.mul_(grad) for gradient in found))


def _walk_chunks(
    work: _Work, states: Sequence[Tensor], weights: Sequence[tuple[Tensor, Tensor | None]], sums: GradientSums
) -> Tensor:
    """The loss sum; adds to sums, and writes statistics."""
    device = states[0].device
    if device.type == "cpu":
        # Allocated and freed on purpose: from now on glibc keeps freed blocks of up to this size.
        torch.empty(MMAP_THRESHOLD_BYTES, dtype=torch.uint8)
    chunk_rows, strip_rows = _most_rows(work, device, weights)
    parts = [work.rows.slice(start, end) for start, end in even_bounds(work.rows, chunk_rows)]
    # One buffer a source, as large as its largest chunk, for all chunks.
    most_rows = [max((len(source.rows_in(part)) for part in parts), default=0) for source in work.sources]
    buffers = [weight.new_empty(most, len(weight)) for most, (weight, _) in zip(most_rows, weights, strict=True)]
    wanted = sums.wanted()
    for part in parts:
        row, strips = _send_chunk(work, part, strip_rows, device)
        picked = [
            one.index_select(0, row_R).to(weight.dtype)
            for one, row_R, (weight, _) in zip(states, row, weights, strict=True)
        ]
        logits = [
            source.head.squash_(source.head.project(states_RH, *head, buffer[: len(states_RH)]))
            for source, states_RH, head, buffer in zip(work.sources, picked, weights, buffers, strict=True)
        ]
        for strip in strips:
            work.writer.add(
                _compute_strip(work, strip, [one[span] for one, span in zip(logits, strip.spans, strict=True)], wanted)
            )
        # The buffers hold the gradients now, in the places of the logits.
        for i, _ in filter(lambda pair: pair[1], enumerate(wanted)):
            sums.add(i, logits[i], picked[i], row[i], weights[i][0])
    return work.writer.stats.loss_U.sum() + work.writer.stats.anchor_U.sum()


def _most_rows(work: _Work, device: torch.device, weights: Sequence[tuple[Tensor, Tensor | None]]) -> tuple[int, int]:
    """(of a chunk, of a strip). On a GPU a chunk is one strip: each costs as many kernels, however small it is."""
    on_cpu = device.type == "cpu" and work.strip_bytes is None
    strip_bytes = work.strip_bytes or (CPU_STRIP_BYTES if on_cpu else GPU_STRIP_BYTES)
    # Rows of four-byte numbers, as many columns as the widest vocabulary has.
    strip_rows = max(1, strip_bytes // (4 * max(len(weight) for weight, _ in weights)))
    return work.chunk_tokens if on_cpu else min(work.chunk_tokens, strip_rows), strip_rows


@dataclass(frozen=True)
class _Strip:
    """A few units of a chunk. spans: where the logits of each source lie in the chunk's buffers."""

    units: PostedUnits
    spans: list[slice]


def _send_chunk(
    work: _Work, part: UnitRows, strip_rows: int, device: torch.device
) -> tuple[list[Tensor], list[_Strip]]:
    """(rows of each source's states, the chunk's strips). All that the device needs of them goes there at once."""
    parcel, strips = Parcel(), []
    of_chunk = [source.rows_in(part) for source in work.sources]
    received = parcel.add({str(i): row_R for i, row_R in enumerate(of_chunk)})
    for start, end in even_bounds(part, strip_rows):
        rows = part.slice(start, end)
        spans = []
        for source, row_R in zip(work.sources, of_chunk, strict=True):
            # What a strip reads lies together: rows ascend with the units, and paths end at gaps between these.
            first, last = torch.searchsorted(row_R, source.rows_in(rows)[[0, -1]]).tolist()
            spans.append(slice(first, last + 1))
        strips.append(_Strip(PostedUnits.of(rows, rows.read_rows_X, parcel), spans))
    parcel.send(device)
    return [*received().values()], strips


def _compute_strip(work: _Work, strip: _Strip, squashed: Sequence[Tensor], wanted: Sequence[bool]) -> UnitStats:
    """Statistics of a strip. squashed: views of the buffers, over which gradients are written where one is wanted."""
    with torch.set_grad_enabled(any(wanted)):
        # Autograd starts from the projected logits. What lies before them, states and head, is the caller's to do in
        # one go.
        leaves = [one.detach().requires_grad_(want) for one, want in zip(squashed, wanted, strict=True)]
        logits = [source.head.expand(leaf) for source, leaf in zip(work.sources, leaves, strict=True)]
        chunk, losses = work.compute(logits, strip.units)
        loss = losses.loss_U.sum() if losses.anchor_U is None else (losses.loss_U + losses.anchor_U).sum()
    if not any(wanted):
        return unit_stats(chunk, losses)
    trained = [i for i, want in enumerate(wanted) if want]
    # An objective in two hidden spaces need not use every matrix that it is given.
    gradients = torch.autograd.grad(loss, [leaves[i] for i in trained], allow_unused=True, materialize_grads=True)
    stats = unit_stats(chunk, losses)  # before the logits go: an objective may have left log-probabilities to it
    for i, gradient in zip(trained, gradients, strict=True):
        work.sources[i].head.squash_backward_(squashed[i], gradient)
    return stats
