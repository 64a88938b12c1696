"""Approximate Likelihood Matching (arXiv 2503.20083, Eq. 5): the two models' probabilities of each whole unit.

With l the log-probability of a unit and p = exp(l / tau), the loss compares the Bernoulli distributions
(p_T, 1 - p_T) and (p_S, 1 - p_S). Nothing of the teacher's distribution but the realised unit is used. A high tau keeps
long, improbable units from all looking alike; tau times the loss has a limit in closed form:

    kl    (l_T - l_S) + l_T * log(l_S / l_T)          tvd    |l_T - l_S|
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from simct_pl.errors import RecipeError, require_choice
from simct_pl.losses.base import Objective, UnitChunk, UnitLosses

BernoulliDivergenceName = Literal["kl", "tvd"]
LOWEST_LOGP = -1e4  # of a unit; below it nothing is learned, instead of a loss that is not finite


class ALMLoss(Objective):
    """Binarised divergence of unit probabilities, at every unit.

    Args:
        divergence: `kl` from the teacher's Bernoulli distribution to the student's, or `tvd`.
        tau: the temperature; null takes the limit of tau * loss.

    Raises:
        RecipeError: for an unknown divergence, or tau not above 0.
    """

    def __init__(self, divergence: BernoulliDivergenceName = "kl", tau: float | None = 100.0) -> None:
        require_choice("divergence", divergence, get_args(BernoulliDivergenceName))
        if tau is not None and tau <= 0:
            raise RecipeError(f"tau is {tau}; expected more than 0, or null for the limit.")
        self.divergence, self.tau = divergence, tau

    def __call__(self, chunk: UnitChunk) -> UnitLosses:
        student_U, teacher_U = _bounded(chunk.student.unit_logp_U), _bounded(chunk.teacher.unit_logp_U)
        if self.tau is None:
            loss_U = self._limit(student_U, teacher_U)
        else:
            loss_U = self._at_temperature(student_U / self.tau, teacher_U / self.tau)
        return UnitLosses.over_everything(loss_U, torch.ones_like(loss_U, dtype=torch.bool))

    def _limit(self, student_U: Tensor, teacher_U: Tensor) -> Tensor:
        if self.divergence == "tvd":
            return (teacher_U - student_U).abs()
        return teacher_U - student_U + teacher_U * (student_U / teacher_U).log()

    def _at_temperature(self, student_U: Tensor, teacher_U: Tensor) -> Tensor:
        """Log-probabilities already divided by tau."""
        if self.divergence == "tvd":
            return (teacher_U.exp() - student_U.exp()).abs()
        unit_U = teacher_U.exp() * (teacher_U - student_U)
        return unit_U - torch.expm1(teacher_U) * (log1mexp(teacher_U) - log1mexp(student_U))

    def describe(self) -> dict[str, object]:
        return {"objective": type(self).__name__, "divergence": self.divergence, "tau": self.tau}


def _bounded(logp_U: Tensor) -> Tensor:
    """Kept away from certainty and from impossibility, at both of which a logarithm is infinite."""
    return logp_U.clamp(LOWEST_LOGP, -torch.finfo(logp_U.dtype).eps)


def log1mexp(logp: Tensor) -> Tensor:
    """log(1 - exp(logp)) for logp < 0, to full precision at both ends."""
    near = logp > -math.log(2)
    # Each branch sees harmless values where the other one is taken: a gradient of 0 * inf would be NaN.
    close = torch.log(-torch.expm1(logp.where(near, -math.log(2))))
    return torch.where(near, close, torch.log1p(-logp.where(~near, -math.log(2)).exp()))
