"""What a step reports about its units: detached numbers, from log-probabilities that the objective has made anyway."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from simct_pl.losses.base import UnitChunk, UnitLosses
from simct_pl.losses.inputs.logprobs import ModelLogProbs, at_least_fp32
from simct_pl.types import UnitStats

_OF_UNITS = [field.name for field in fields(UnitStats) if field.name not in ("supervised_U", "token_logprobs_N")]


@torch.no_grad()
def unit_stats(chunk: UnitChunk, losses: UnitLosses) -> UnitStats:
    """Of a few units whose losses have just been computed."""
    student, teacher, known = chunk.student, chunk.teacher, losses.row_stats
    if known is None:
        entropy_U = _entropy(student.first_logp_UK.detach())
        logz_N = logz_M = None
    else:
        entropy_U = known.student_entropy_N[student.first_U]
        logz_N, logz_M = known.student_logz_N, known.teacher_logz_M
    return UnitStats(
        loss_U=losses.loss_U.detach(),
        supervised_U=losses.supervised_U,
        student_logmass_U=losses.student_logmass_U,
        teacher_logmass_U=losses.teacher_logmass_U,
        student_entropy_U=entropy_U,
        student_stop_U=_stop_probability(student, logz_N, chunk.tables.stop_column),
        teacher_stop_U=_stop_probability(teacher, logz_M, chunk.tables.stop_column),
        teacher_logprobs_U=teacher.sum_by_unit(_token_logprobs(teacher, logz_M)),
        anchor_U=torch.zeros_like(losses.loss_U) if losses.anchor_U is None else losses.anchor_U.detach(),
        token_logprobs_N=_token_logprobs(student, logz_N),
    )


class StatsWriter:
    """Puts the statistics of one range of units after another into arrays that were allocated before the first.

    Small tensors that outlive a chunk would settle between its large temporaries and keep the allocator from using
    their memory again: the process would grow with the length of the responses. Numbers of units are rows of one
    matrix, which takes all of a range at once.
    """

    def __init__(self, num_units: int, num_tokens: int, like: Tensor) -> None:
        self._of_units = like.new_zeros(len(_OF_UNITS), num_units)
        supervised_U = torch.zeros(num_units, dtype=torch.bool, device=like.device)
        rows: dict[str, Any] = dict(zip(_OF_UNITS, self._of_units.unbind(), strict=True))
        self.stats = UnitStats(**rows, supervised_U=supervised_U, token_logprobs_N=like.new_zeros(num_tokens))
        self._next_unit = self._next_token = 0

    def add(self, part: UnitStats) -> None:
        """The units after those of the last call."""
        units = slice(self._next_unit, self._next_unit + len(part.loss_U))
        tokens = slice(self._next_token, self._next_token + len(part.token_logprobs_N))
        self._of_units[:, units] = torch.stack([getattr(part, name) for name in _OF_UNITS])
        self.stats.supervised_U[units] = part.supervised_U
        self.stats.token_logprobs_N[tokens] = part.token_logprobs_N
        self._next_unit, self._next_token = units.stop, tokens.stop


def join_stats(parts: Sequence[UnitStats]) -> UnitStats:
    """Those of several groups of units, one behind the other."""
    if len(parts) == 1:
        return parts[0]
    return UnitStats(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(UnitStats)))


def _entropy(logp_UK: Tensor) -> Tensor:
    """-sum p log p in nats; an id that a model rules out (-inf) adds nothing."""
    return -torch.linalg.vecdot(logp_UK.exp(), logp_UK.clamp_min(torch.finfo(logp_UK.dtype).min))


def _token_logprobs(side: ModelLogProbs, logz_N: Tensor | None) -> Tensor:
    """Of each realised token. logz_N: log-sum-exp of its row, where it is known."""
    if logz_N is None:
        return side.token_logp_N.detach()
    return side.logits_NK.detach().gather(-1, side.ids_N[:, None]).squeeze(-1) - logz_N


def _stop_probability(side: ModelLogProbs, logz_N: Tensor | None, stop_column: int | None) -> Tensor:
    """Probability of ending the response at each unit's first token, [U]; 0 when the pair has no stop."""
    if stop_column is None:
        return torch.zeros_like(side.first_U, dtype=at_least_fp32(side.logits_NK[:0]).dtype)
    stop_ids = side.tables.stop_ids(stop_column)
    if logz_N is None:
        return side.first_logp_UK.detach()[:, stop_ids].exp().sum(-1)
    first_U = side.first_U
    return (side.logits_NK.detach()[first_U[:, None], stop_ids] - logz_N[first_U, None]).exp().sum(-1)
