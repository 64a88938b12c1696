"""SimCT (arXiv 2605.07711, Eq. 6-9): every unit is compared over the shared tokens plus the unit itself.

The defaults are the paper's: mean log-probability, prefixes kept, reverse KL.
"""

from __future__ import annotations

import math

import torch

from simct_pl.errors import RecipeError
from simct_pl.losses.base import Objective, UnitChunk, UnitLosses
from simct_pl.losses.columns.candidate_scores import CandidateRule, PrefixName, ScoreName, score_side
from simct_pl.losses.divergences import DivergenceName, named_divergence


class SimCTLoss(Objective):
    """D(q_student, q_teacher) over C(h) = shared tokens ∪ {unit} at the start h of each unit.

    Args:
        score, prefix, rest: the candidate rule, see CandidateRule.
        divergence: rkl | kl | jsd | skl | srkl | akl | tvd | top1_ce.
        jsd_beta: weight of the teacher in `jsd`. skew: interpolation of `skl` and `srkl`.
        mass_threshold: if set, units whose candidates hold less than 1 / mass_threshold of the teacher's probability
            are not supervised (the released code's mask); off by default.

    Raises:
        RecipeError: for an unknown name or a combination that has no meaning.
    """

    def __init__(
        self,
        score: ScoreName = "mean_logprob",
        prefix: PrefixName = "keep",
        rest: bool = False,
        divergence: DivergenceName = "rkl",
        jsd_beta: float = 0.5,
        skew: float = 0.1,
        mass_threshold: float | None = None,
    ) -> None:
        if mass_threshold is not None and mass_threshold < 1:
            raise RecipeError(
                f"mass_threshold is {mass_threshold}; expected at least 1, or null to switch the mask off."
            )
        if mass_threshold is not None and rest:
            raise RecipeError(
                "mass_threshold with rest=True drops nothing: with a rest, the candidates hold all mass. Set one."
            )
        self.rule = CandidateRule(score, prefix, rest)
        self.uses_prefixes = prefix == "mask"
        self.divergence = divergence
        self.mass_threshold = mass_threshold
        self._divergence = named_divergence(divergence, jsd_beta=jsd_beta, skew=skew)
        self._description = dict(
            self.rule.__dict__, divergence=divergence, jsd_beta=jsd_beta, skew=skew, mass_threshold=mass_threshold
        )

    def __call__(self, chunk: UnitChunk) -> UnitLosses:
        student = score_side(chunk.student, chunk.rows, self.rule)
        with torch.no_grad():
            teacher = score_side(chunk.teacher, chunk.rows, self.rule)
        # Eq. 8: scores are made to add up to 1 over the candidates. Eq. 9: the divergence of the two.
        loss_U = self._divergence(student.scores_UC.log_softmax(-1), teacher.scores_UC.log_softmax(-1))
        supervised_U = torch.ones_like(loss_U, dtype=torch.bool)
        if self.mass_threshold is not None:
            supervised_U = teacher.candidate_logmass_U >= -math.log(self.mass_threshold)
            loss_U = loss_U.masked_fill(~supervised_U, 0.0)
        return UnitLosses(loss_U, supervised_U, student.candidate_logmass_U.detach(), teacher.candidate_logmass_U)

    def describe(self) -> dict[str, object]:
        return {"objective": type(self).__name__, **self._description}
