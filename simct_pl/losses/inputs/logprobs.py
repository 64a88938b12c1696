"""One model's logits of a few whole units, and what every objective derives from them, each at most once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from simct_pl.losses.inputs.vocab_tables import SideTables


@dataclass(frozen=True, eq=False)
class ModelLogProbs:
    """One side of a UnitChunk (N rows, U units, K = the model's vocabulary).

    logits_NK: any float dtype; row i predicts ids_N[i]. unit_N: int64, the unit of each row, ascending. first_U: int64,
    each unit's first row. tables: this side's view of the shared vocabulary.

    All log-probabilities are over the FULL vocabulary and at least fp32.
    """

    logits_NK: Tensor
    ids_N: Tensor
    unit_N: Tensor
    first_U: Tensor
    tables: SideTables

    @property
    def first_logp_UK(self) -> Tensor:
        """Log-probabilities at the start of each unit."""
        return self._logp[0]

    @property
    def token_logp_N(self) -> Tensor:
        """Log-probability of each realised token."""
        return self._logp[1]

    @cached_property
    def _logp(self) -> tuple[Tensor, Tensor]:
        found: tuple[Tensor, Tensor] = _LogProbs.apply(at_least_fp32(self.logits_NK), self.first_U, self.ids_N)
        return found

    @cached_property
    def unit_logp_U(self) -> Tensor:
        """Log-probability of each whole unit."""
        return self.sum_by_unit(self.token_logp_N)

    @cached_property
    def length_U(self) -> Tensor:
        """Tokens of each unit, int64."""
        return torch.diff(self.first_U, append=self.first_U.new_full((1,), len(self.unit_N)))

    def sum_by_unit(self, value_N: Tensor) -> Tensor:
        return value_N.new_zeros(len(self.first_U)).index_add(0, self.unit_N, value_N)


def at_least_fp32(logits: Tensor) -> Tensor:
    """Half precision is widened BEFORE anything is masked or summed; float64 stays."""
    return logits if logits.dtype in (torch.float32, torch.float64) else logits.float()


class _LogProbs(torch.autograd.Function):
    """(all log-probabilities of the units' first rows, those of the realised tokens of all rows).

    Two picks from one log_softmax, written together so that their gradients meet without a vocabulary-wide array of
    zeros for each.
    """

    @staticmethod
    def forward(ctx: Any, logits_NK: Tensor, first_U: Tensor, ids_N: Tensor) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        logp_NK = logits_NK.log_softmax(-1)
        token_logp_N = logp_NK.gather(-1, ids_N[:, None]).squeeze(-1)
        # Units of one token each: their first rows are all rows, and nothing need be copied.
        first_logp_UK = logp_NK if len(first_U) == len(ids_N) else logp_NK.index_select(0, first_U)
        ctx.save_for_backward(logp_NK, first_U, ids_N)
        return first_logp_UK, token_logp_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_first_UK: Tensor | None, grad_token_N: Tensor | None) -> tuple[Tensor, None, None]:
        """d logits = d logp - p * sum(d logp), row by row."""
        logp_NK, first_U, ids_N = ctx.saved_tensors
        # The sum of d logp in each row, over both outputs. It scales the softmax; d logp itself is added where it came
        # in.
        total_N = logp_NK.new_zeros(len(logp_NK)) if grad_token_N is None else grad_token_N.clone()
        if grad_first_UK is not None:
            total_N.index_add_(0, first_U, grad_first_UK.sum(-1))
        grad_NK = logp_NK.exp().mul_(total_N.neg_()[:, None])
        if grad_first_UK is not None:
            grad_NK.index_add_(0, first_U, grad_first_UK)
        if grad_token_N is not None:
            grad_NK.scatter_add_(-1, ids_N[:, None], grad_token_N[:, None])
        return grad_NK, None, None
