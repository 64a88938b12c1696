"""The chunker: from hidden states to the loss sum of many responses, a few units at a time.

No tensor of [response x vocabulary] ever exists: a chunk's logits are made, used and dropped, and made again in
backward (activation checkpointing). Chunks are cut between units, so an objective always sees whole units.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from simct_pl.losses.base import Objective, UnitChunk, UnitLosses
from simct_pl.scoring.candidates import PairTables, SideTables, at_least_fp32
from simct_pl.scoring.units import UnitRows

Head = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class UnitStats:
    """What a step reports about its units, detached.

    Per unit: loss_U, supervised_U, student_logmass_U and teacher_logmass_U (log candidate mass), student_entropy_U
    (nats, full vocabulary, at the unit's first token), student_stop_U and teacher_stop_U (probability of stop there).
    Per student token in a unit: token_logprobs_N.
    """

    loss_U: Tensor
    supervised_U: Tensor
    student_logmass_U: Tensor
    teacher_logmass_U: Tensor
    student_entropy_U: Tensor
    student_stop_U: Tensor
    teacher_stop_U: Tensor
    token_logprobs_N: Tensor

    @classmethod
    def concatenate(cls, parts: list[UnitStats]) -> UnitStats:
        return cls(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(cls)))

    def split(self, num_units: list[int], num_tokens: list[int]) -> list[UnitStats]:
        """One part a response, on the CPU, given how many units and student tokens each contributed."""
        columns = [
            getattr(self, field.name).cpu().split(num_tokens if field.name.endswith("_N") else num_units)
            for field in fields(self)
        ]
        return [UnitStats(*values) for values in zip(*columns, strict=True)]

    @classmethod
    def empty(cls, device: torch.device) -> UnitStats:
        none = torch.zeros(0, device=device)
        return cls(none, none.bool(), none, none, none, none, none, none)


def chunked_loss(
    student_hidden_NH: Tensor,
    teacher_hidden_MH: Tensor,
    rows: UnitRows,
    *,
    student_head: Head,
    teacher_head: Head,
    objective: Objective,
    tables: PairTables,
    chunk_tokens: int = 1024,
) -> tuple[Tensor, UnitStats]:
    """Sum of the objective over all units, and its statistics.

    Args:
        student_hidden_NH, teacher_hidden_MH: states whose rows UnitRows refers to; any float dtype.
        rows: the units, on the states' device.
        student_head, teacher_head: states → logits.
        chunk_tokens: at most this many rows of either side have logits at a time (a longer unit is a chunk of its own).

    Returns:
        (loss_sum, stats). Without any unit, loss_sum is a zero that still runs backward through the student, so that
        ranks on which nothing aligns keep collectives in step.
    """
    loss_sum = at_least_fp32(student_hidden_NH[:0]).sum()

    def run_chunk(student_states: Tensor, teacher_states: Tensor, chunk_rows: UnitRows) -> tuple[Tensor, UnitStats]:
        student_logits_NK = student_head(student_states)
        with torch.no_grad():
            teacher_logits_MK = teacher_head(teacher_states)
        chunk = UnitChunk(student_logits_NK, teacher_logits_MK, chunk_rows, tables)
        losses = objective(chunk)
        loss = losses.loss_U.sum()
        # Last, so that the recomputation in backward stops before it.
        return loss, _unit_stats(chunk, losses)

    parts = []
    for start, end in chunk_bounds(rows, chunk_tokens):
        chunk_rows = rows.slice(start, end)
        loss, stats = checkpoint(
            run_chunk,
            student_hidden_NH[chunk_rows.student_rows_N],
            teacher_hidden_MH[chunk_rows.teacher_rows_M],
            chunk_rows,
            use_reentrant=False,
        )
        loss_sum = loss_sum + loss
        parts.append(stats)
    return loss_sum, UnitStats.concatenate(parts) if parts else UnitStats.empty(student_hidden_NH.device)


def chunk_bounds(rows: UnitRows, chunk_tokens: int) -> Iterator[tuple[int, int]]:
    """Cut the units, in order, into ranges with at most chunk_tokens rows a side."""
    num_units = rows.num_units
    if num_units == 0:
        return
    edges_U2 = torch.stack([rows.student_first_U, rows.teacher_first_U], 1).tolist()
    edges_U2.append([len(rows.student_ids_N), len(rows.teacher_ids_M)])
    start = 0
    for unit in range(num_units):
        too_long = max(edges_U2[unit + 1][side] - edges_U2[start][side] for side in (0, 1)) > chunk_tokens
        if too_long and unit > start:
            yield start, unit
            start = unit
    yield start, num_units


@torch.no_grad()
def _unit_stats(chunk: UnitChunk, losses: UnitLosses) -> UnitStats:
    rows, tables = chunk.rows, chunk.tables
    logp_NK = at_least_fp32(chunk.student_logits_NK.detach()).log_softmax(-1)
    first_UK = logp_NK[rows.student_first_U]
    return UnitStats(
        loss_U=losses.loss_U.detach(),
        supervised_U=losses.supervised_U,
        student_logmass_U=losses.student_logmass_U,
        teacher_logmass_U=losses.teacher_logmass_U,
        student_entropy_U=torch.special.entr(first_UK.exp()).sum(-1),
        student_stop_U=_stop_probability(first_UK, tables.student, tables.stop_column),
        teacher_stop_U=_stop_probability(
            at_least_fp32(chunk.teacher_logits_MK[rows.teacher_first_U]).log_softmax(-1),
            tables.teacher,
            tables.stop_column,
        ),
        token_logprobs_N=logp_NK.gather(-1, rows.student_ids_N[:, None]).squeeze(-1),
    )


def _stop_probability(first_logp_UK: Tensor, tables: SideTables, stop_column: int | None) -> Tensor:
    """Probability of ending the response at each unit's first token, [U]; 0 when the pair has no stop."""
    if stop_column is None:
        return first_logp_UK.new_zeros(len(first_logp_UK))
    stop_ids = torch.cat([tables.ids_V[stop_column, None], tables.stop_ids_E])
    return first_logp_UK[:, stop_ids].exp().sum(-1)
