"""DPCA (arXiv 2606.09456): the teacher's opinion of each sampled unit, credited to the student's tokens.

    A(u) = l_T(u) - l_S(u)                                  how much likelier the teacher finds unit u, in nats
    A_j  = A(u) * log p_S(v_j) / l_S(u)                     token j's part: the more it surprised the student
    loss = - sum_j stop_gradient(A_j) * log p_S(v_j)

The gradient is that of reverse KL estimated from the sampled tokens alone (policy gradient, no baseline). The value of
the loss is no divergence and may be negative; on-policy responses are assumed.
"""

from __future__ import annotations

import torch

from simct_pl.errors import RecipeError
from simct_pl.losses.alm import LOWEST_LOGP
from simct_pl.losses.base import Objective, UnitChunk, UnitLosses


class DPCALoss(Objective):
    """Policy-gradient credit of unit log-probability gaps, at every unit.

    Gradients stop at the credit: it reaches neither model, though it is computed from both.

    Args:
        clip: credits are cut to [-clip, clip] nats a unit before they are shared out; null leaves them.

    Raises:
        RecipeError: for a clip that is not above 0.
    """

    own_responses_only = True

    def __init__(self, clip: float | None = None) -> None:
        if clip is not None and clip <= 0:
            raise RecipeError(f"clip is {clip}; expected more than 0, or null to leave credits as they are.")
        self.clip = clip

    def __call__(self, chunk: UnitChunk) -> UnitLosses:
        student, rows = chunk.student, chunk.rows
        logp_N = student.token_logp_N.clamp_min(LOWEST_LOGP)
        with torch.no_grad():
            unit_U = student.sum_by_unit(logp_N)
            gap_U = chunk.teacher.unit_logp_U.clamp_min(LOWEST_LOGP) - unit_U
            if self.clip is not None:
                gap_U = gap_U.clamp(-self.clip, self.clip)
            # A unit that did not surprise the student at all shares its credit evenly.
            even_N = 1 / student.length_U[rows.student_unit_N].to(logp_N.dtype)
            certain_N = unit_U[rows.student_unit_N] == 0
            share_N = torch.where(certain_N, even_N, logp_N / unit_U[rows.student_unit_N].where(~certain_N, 1.0))
            credit_N = gap_U[rows.student_unit_N] * share_N
        loss_U = student.sum_by_unit(-credit_N * logp_N)
        return UnitLosses.over_everything(loss_U, torch.ones_like(loss_U, dtype=torch.bool))

    def describe(self) -> dict[str, object]:
        return {"objective": type(self).__name__, "clip": self.clip}
