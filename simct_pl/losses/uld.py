"""Universal Logit Distillation (arXiv 2402.12030, Eq. 6): sorted probabilities compared rank by rank.

At 1:1 units, weight * sum_i |sort(p_S)_i - sort(p_T)_i| over the whole vocabularies, the smaller one padded with zeros.
It needs no shared token, and so does not know which token is which: two models that are sure of different tokens agree.
"""

from __future__ import annotations

from simct_pl.losses.base import Objective, UnitChunk, UnitLosses
from simct_pl.losses.sorted_mass import check_top_k, sorted_l1


class ULDLoss(Objective):
    """Sorted L1 at units of one token on each side; all others are left out.

    Args:
        weight: the paper's lambda.
        top_k: compare the k largest probabilities, and the rest as one number (see sorted_l1; 1024 leaves little of a
            language model's mass to it); null sorts both vocabularies.

    Raises:
        RecipeError: for top_k below 1.
    """

    def __init__(self, weight: float = 1.5, top_k: int | None = None) -> None:
        check_top_k(top_k)
        self.weight, self.top_k = weight, top_k

    def __call__(self, chunk: UnitChunk) -> UnitLosses:
        supervised_U = chunk.rows.one_to_one_U
        unit_E = supervised_U.nonzero().squeeze(-1)
        student_EK, teacher_EK = (
            side.first_logp_UK.index_select(0, unit_E).exp() for side in (chunk.student, chunk.teacher)
        )
        loss_E = self.weight * sorted_l1(student_EK, teacher_EK, self.top_k)
        loss_U = loss_E.new_zeros(len(supervised_U)).index_put((unit_E,), loss_E)
        return UnitLosses.over_everything(loss_U, supervised_U)

    def describe(self) -> dict[str, object]:
        return {"objective": type(self).__name__, "weight": self.weight, "top_k": self.top_k}
