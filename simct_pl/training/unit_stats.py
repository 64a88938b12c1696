"""What a step reports about its units: detached numbers, from log-probabilities that the objective has made anyway."""

from __future__ import annotations

from dataclasses import fields

import torch
from torch import Tensor

from simct_pl.losses.base import UnitChunk, UnitLosses
from simct_pl.losses.inputs.logprobs import ModelLogProbs
from simct_pl.types import UnitStats


@torch.no_grad()
def unit_stats(chunk: UnitChunk, losses: UnitLosses) -> UnitStats:
    """Of a few units whose losses have just been computed."""
    return UnitStats(
        loss_U=losses.loss_U.detach(),
        supervised_U=losses.supervised_U,
        student_logmass_U=losses.student_logmass_U,
        teacher_logmass_U=losses.teacher_logmass_U,
        student_entropy_U=_entropy(chunk.student.first_logp_UK.detach()),
        student_stop_U=_stop_probability(chunk.student, chunk.tables.stop_column),
        teacher_stop_U=_stop_probability(chunk.teacher, chunk.tables.stop_column),
        teacher_logprobs_U=chunk.teacher.unit_logp_U,
        token_logprobs_N=chunk.student.token_logp_N.detach(),
    )


class StatsWriter:
    """Puts the statistics of one range of units after another into arrays that were allocated before the first.

    Small tensors that outlive a chunk would settle between its large temporaries and keep the allocator from using
    their memory again: the process would grow with the length of the responses.
    """

    def __init__(self, stats: UnitStats) -> None:
        self.stats = stats
        self._next_unit = self._next_token = 0

    def add(self, part: UnitStats) -> None:
        """The units after those of the last call."""
        units = slice(self._next_unit, self._next_unit + len(part.loss_U))
        tokens = slice(self._next_token, self._next_token + len(part.token_logprobs_N))
        for field in fields(UnitStats):
            place = tokens if field.name.endswith("_N") else units
            getattr(self.stats, field.name)[place] = getattr(part, field.name)
        self._next_unit, self._next_token = units.stop, tokens.stop


def _entropy(logp_UK: Tensor) -> Tensor:
    """-sum p log p in nats; an id that a model rules out (-inf) adds nothing."""
    return -torch.linalg.vecdot(logp_UK.exp(), logp_UK.clamp_min(torch.finfo(logp_UK.dtype).min))


def _stop_probability(side: ModelLogProbs, stop_column: int | None) -> Tensor:
    """Probability of ending the response at each unit's first token, [U]; 0 when the pair has no stop."""
    first_logp_UK = side.first_logp_UK.detach()
    if stop_column is None:
        return first_logp_UK.new_zeros(len(first_logp_UK))
    # The column's own id and the further stops: any of them ends the response.
    stop_ids = torch.cat([side.tables.ids_V[stop_column, None], side.tables.stops.ids_E])
    return first_logp_UK[:, stop_ids].exp().sum(-1)
