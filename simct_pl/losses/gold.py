"""GOLD (TRL's experimental trainer): tokens that both vocabularies have are compared by name, all others by rank.

At each unit both models get one set of masses over their vocabulary: the distribution at one of the unit's positions
times the probability of the unit's other realised tokens. Then

    w * JSD_beta(matched tokens) + (1 - w) * sum_i |sort(unmatched S)_i - sort(unmatched T)_i|

on the masses as they are; they do not add up to 1. The mass of every stop is that of the first one.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from simct_pl.errors import RecipeError, require_choice
from simct_pl.losses.base import Objective, UnitChunk, UnitLosses
from simct_pl.losses.columns.column_logprobs import join_stops
from simct_pl.losses.inputs.logprobs import ModelLogProbs, at_least_fp32
from simct_pl.losses.sorted_mass import check_top_k, sorted_l1

MergeName = Literal["first", "last"]
LOWEST_MASS = 1e-8  # TRL's clamp of every mass and probability


class GOLDLoss(Objective):
    """GOLD's hybrid loss on minimal units, tokens matched by their bytes.

    Args:
        merge: `first` takes the distribution at the unit's first position (what TRL's "observed" is meant to do; as it
            stands it reads the row behind); `last` the one at its last position, given the realised
            tokens before it (TRL's "bayesian").
        beta: of the generalised JSD, in [0, 1]: 0 is KL(T || S), 1 is KL(S || T); TRL's configuration starts from 0.5.
        matched_weight: w; null is TRL's share of the teacher's vocabulary that is matched.
        top_k: of the sorted part, see sorted_l1.

    Raises:
        RecipeError: for an unknown merge, or a number outside its range.
    """

    def __init__(
        self,
        merge: MergeName = "first",
        beta: float = 1.0,
        matched_weight: float | None = None,
        top_k: int | None = None,
    ) -> None:
        require_choice("merge", merge, get_args(MergeName))
        if not 0 <= beta <= 1:
            raise RecipeError(f"beta is {beta}; expected a number in [0, 1].")
        if matched_weight is not None and not 0 <= matched_weight <= 1:
            raise RecipeError(f"matched_weight is {matched_weight}; expected a share in [0, 1], or null.")
        check_top_k(top_k)
        self.merge, self.beta, self.matched_weight, self.top_k = merge, beta, matched_weight, top_k

    def __call__(self, chunk: UnitChunk) -> UnitLosses:
        # One set of masses a side. Matched ids are compared each with its like; of the others only the ranks are.
        student_UK, teacher_UK = self.masses(chunk.student), self.masses(chunk.teacher)
        student_ids, teacher_ids = self.matched_ids(chunk)
        matched_U = _jsd(student_UK.index_select(-1, student_ids), teacher_UK.index_select(-1, teacher_ids), self.beta)
        unmatched_U = sorted_l1(
            student_UK.index_select(-1, _others(student_ids, student_UK)),
            teacher_UK.index_select(-1, _others(teacher_ids, teacher_UK)),
            self.top_k,
        )
        weight = len(teacher_ids) / teacher_UK.shape[-1] if self.matched_weight is None else self.matched_weight
        loss_U = weight * matched_U + (1 - weight) * unmatched_U
        return UnitLosses.over_everything(loss_U, torch.ones_like(loss_U, dtype=torch.bool))

    def masses(self, side: ModelLogProbs) -> Tensor:
        """What is compared, by id, [U, K]."""
        return join_stops(merged_mass(side, self.merge), side.tables)

    def matched_ids(self, chunk: UnitChunk) -> tuple[Tensor, Tensor]:
        """Ids of the student and of the teacher that are compared by name, int64 [matches] each."""
        return chunk.tables.student.ids_V, chunk.tables.teacher.ids_V

    def describe(self) -> dict[str, object]:
        settings = {name: getattr(self, name) for name in ("merge", "beta", "matched_weight", "top_k")}
        return {"objective": type(self).__name__, **settings}


def merged_mass(side: ModelLogProbs, merge: MergeName) -> Tensor:
    """One distribution of each unit times the probability of its other realised tokens, [U, K]."""
    if merge == "first":
        base_logp_UK, base_U = side.first_logp_UK, side.first_U
    else:
        base_U = side.first_U + side.length_U - 1
        base_logp_UK = at_least_fp32(side.logits_NK.index_select(0, base_U)).log_softmax(-1)
    # The base position is left out of the product: the whole distribution stands in its place.
    floored_N = side.token_logp_N.clamp_min(math.log(LOWEST_MASS)).index_fill(0, base_U, 0.0)
    return base_logp_UK.exp() * side.sum_by_unit(floored_N).exp()[:, None]


def _others(matched_ids: Tensor, mass_UK: Tensor) -> Tensor:
    """All ids but the matched ones, ascending; a model's rows without a token are among them."""
    is_matched_K = torch.zeros(mass_UK.shape[-1], dtype=torch.bool, device=mass_UK.device)
    is_matched_K[matched_ids] = True
    return (~is_matched_K).nonzero().squeeze(-1)


def _jsd(student_UV: Tensor, teacher_UV: Tensor, beta: float) -> Tensor:
    """Generalised JSD (arXiv 2306.13649, Eq. 1) of masses that need not add up to 1, [U]."""
    student_UV, teacher_UV = student_UV.clamp_min(LOWEST_MASS), teacher_UV.clamp_min(LOWEST_MASS)
    # At both ends the mixture is one of the two, and the divergence is the KL between them.
    if beta == 0:
        return (teacher_UV * (teacher_UV.log() - student_UV.log())).sum(-1)
    if beta == 1:
        return (student_UV * (student_UV.log() - teacher_UV.log())).sum(-1)
    mixture_log_UV = (beta * teacher_UV + (1 - beta) * student_UV).log()
    to_teacher_U = (teacher_UV * (teacher_UV.log() - mixture_log_UV)).sum(-1)
    to_student_U = (student_UV * (student_UV.log() - mixture_log_UV)).sum(-1)
    return beta * to_teacher_U + (1 - beta) * to_student_U
