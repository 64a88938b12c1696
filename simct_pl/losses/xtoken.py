"""X-Token (arXiv 2605.21699): the student's distribution, projected into the teacher's vocabulary.

W [K, J] says how the teacher spells each student token (TokenProjection). At each unit

    P-KL   both models' distributions are averaged over the unit's positions, the student's goes through W; D(T, S W)
           over the teacher's tokens that some student token reaches, both made to add up to 1 there
    H-KL   GOLD's loss, with more tokens matched: each student token with the teacher token that it gives most to

The paper leaves open how the pieces of a token share its weight (`decay`), and what becomes of teacher tokens that
nothing reaches; they are left out here.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from typing_extensions import override

from simct_pl.errors import RecipeError
from simct_pl.losses.base import Objective, UnitChunk, UnitLosses
from simct_pl.losses.columns.column_logprobs import join_stops
from simct_pl.losses.divergences import DivergenceName, named_divergence
from simct_pl.losses.gold import GOLDLoss
from simct_pl.losses.inputs.logprobs import ModelLogProbs, at_least_fp32
from simct_pl.tokenization.pair import TokenizerPair
from simct_pl.tokenization.projection import TokenProjection


class ProjectingObjective(Objective):
    """An objective that needs W.

    decay: see TokenProjection.
    """

    decay: float
    _pair: TokenizerPair | None = None

    @override
    def prepare(self, pair: TokenizerPair) -> None:
        if self._pair is not pair:
            self._pair = pair
            self.use(TokenProjection.of_pair(pair, self.decay))

    @abstractmethod
    def use(self, projection: TokenProjection) -> None:
        """Take a projection; `prepare` hands over that of its pair."""


class XTokenPKL(ProjectingObjective):
    """Divergence in the teacher's vocabulary, at every unit.

    Args:
        divergence: `kl` is the paper's, from the teacher to the student.
        decay: see TokenProjection.

    Raises:
        RecipeError: for an unknown divergence, or when called before `prepare`.
    """

    def __init__(self, divergence: DivergenceName = "kl", decay: float = 1.0) -> None:
        self._divergence = named_divergence(divergence)
        self.divergence, self.decay = divergence, decay
        self.projection: TokenProjection | None = None
        self._tables: tuple[Tensor, ...] = ()

    @override
    def use(self, projection: TokenProjection) -> None:
        # Targets that nothing reaches get no column; place_E is where each entry's target is among the others.
        reached_R = np.unique(projection.target_E)
        place_E = np.searchsorted(reached_R, projection.target_E)
        arrays = projection.source_E, place_E, projection.weight_E, reached_R
        self.projection, self._tables = projection, tuple(torch.from_numpy(array) for array in arrays)

    def __call__(self, chunk: UnitChunk) -> UnitLosses:
        if self.projection is None:
            raise RecipeError(f"{type(self).__name__} has no projection yet; call prepare(pair) first.")
        # The two sides' positions within a unit do not correspond, so each model has one distribution a unit: their
        # mean.
        student_UK = _mean_probability(chunk.student)
        teacher_UJ = join_stops(_mean_probability(chunk.teacher), chunk.tables.teacher)
        self._tables = tuple(table.to(student_UK.device) for table in self._tables)
        source_E, place_E, weight_E, reached_R = self._tables
        # S W and T, over the reached tokens alone. What either has outside them is divided away, and shows as mass
        # below 1.
        projected_UR = _Project.apply(student_UK, source_E, place_E, weight_E.to(student_UK.dtype), len(reached_R))
        tiny = torch.finfo(student_UK.dtype).tiny
        logs = [mass.clamp_min(tiny).log() for mass in (projected_UR, teacher_UJ.index_select(-1, reached_R))]
        student_logq_UR, teacher_logq_UR = (log.log_softmax(-1) for log in logs)
        loss_U = self._divergence(student_logq_UR, teacher_logq_UR)
        # Of the candidates, before they were made to add up to 1.
        student_logmass_U, teacher_logmass_U = (log.detach().logsumexp(-1) for log in logs)
        supervised_U = torch.ones_like(loss_U, dtype=torch.bool)
        return UnitLosses(loss_U, supervised_U, student_logmass_U, teacher_logmass_U)

    def describe(self) -> dict[str, object]:
        return {"objective": type(self).__name__, "divergence": self.divergence, "decay": self.decay}


class XTokenHKL(ProjectingObjective, GOLDLoss):
    """GOLD's loss, each student token matched with the teacher token that it gives most of its weight to.

    Where several student tokens want the same teacher token, the one that gives it most has it; of equals, the one that
    is its like before a twin (a byte fallback, a further stop).

    Args:
        threshold: least weight of a match. decay: see TokenProjection. The others: see GOLDLoss.

    Raises:
        RecipeError: see GOLDLoss; and when called before `prepare`.
    """

    def __init__(
        self,
        threshold: float = 0.6,
        decay: float = 0.5,
        beta: float = 0.0,
        matched_weight: float | None = None,
        top_k: int | None = None,
    ) -> None:
        super().__init__("first", beta, matched_weight, top_k)
        if not 0 < threshold <= 1:
            raise RecipeError(f"threshold is {threshold}; expected more than 0 and at most 1.")
        self.threshold, self.decay = threshold, decay
        self._matched: tuple[Tensor, Tensor] | None = None

    @override
    def use(self, projection: TokenProjection) -> None:
        student_ids, teacher_ids = best_matches(projection, self.threshold)
        self._matched = torch.from_numpy(student_ids), torch.from_numpy(teacher_ids)

    @override
    def matched_ids(self, chunk: UnitChunk) -> tuple[Tensor, Tensor]:
        if self._matched is None:
            raise RecipeError(f"{type(self).__name__} has no projection yet; call prepare(pair) first.")
        device = chunk.student_logits_NK.device
        return self._matched[0].to(device), self._matched[1].to(device)

    @override
    def describe(self) -> dict[str, object]:
        return {**super().describe(), "threshold": self.threshold, "decay": self.decay}


def best_matches(projection: TokenProjection, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of ids, int64 [matches] each, in the teacher's order: every id at most once, ties to likes, then to the
    lower one.
    """
    enough_E = projection.weight_E >= threshold
    source, target = projection.source_E[enough_E], projection.target_E[enough_E]
    weight, is_like = projection.weight_E[enough_E], projection.is_like_E[enough_E]
    # By the student's wish: the heaviest first, then likes, then the lower id (lexsort's last key counts first).
    # `unique` names the first place of each value.
    by_wish = np.lexsort((source, ~is_like, -weight))
    _, first = np.unique(source[by_wish], return_index=True)  # each student token's favourite
    # In the order of wishes still, so that the first to want a teacher token is the one that gives it most.
    wished = by_wish[np.sort(first)]
    _, first = np.unique(target[wished], return_index=True)  # and each teacher token's, of those
    return source[wished][first], target[wished][first]


def _mean_probability(side: ModelLogProbs) -> Tensor:
    """Mean over each unit's positions of the model's distribution, [U, K]."""
    probs_NK = at_least_fp32(side.logits_NK).softmax(-1)
    if len(side.first_U) == len(probs_NK):
        return probs_NK
    sums_UK = probs_NK.new_zeros(len(side.first_U), probs_NK.shape[1]).index_add(0, side.unit_N, probs_NK)
    return sums_UK / side.length_U[:, None]


class _Project(torch.autograd.Function):
    """x W for a W of few entries: a gather, a product and a sum by target; and the same the other way round."""

    @staticmethod
    def forward(ctx: Any, x_UK: Tensor, source_E: Tensor, place_E: Tensor, weight_E: Tensor, width: int) -> Tensor:
        ctx.save_for_backward(source_E, place_E, weight_E)
        ctx.num_ids = x_UK.shape[1]
        return x_UK.new_zeros(len(x_UK), width).index_add_(1, place_E, x_UK.index_select(1, source_E).mul_(weight_E))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_UR: Tensor) -> tuple[Tensor | None, ...]:
        source_E, place_E, weight_E = ctx.saved_tensors
        # The gradient of x W is that of the product times W transposed: the same entries, read from target to source.
        grad_UE = grad_UR.index_select(1, place_E).mul_(weight_E)
        return grad_UR.new_zeros(len(grad_UR), ctx.num_ids).index_add_(1, source_E, grad_UE), None, None, None, None
