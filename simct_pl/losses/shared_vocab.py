"""Exact shared-vocabulary distillation ("SimpleOPD"): only 1:1 units of a shared token have a loss, over shared tokens.

Everything that the two tokenizers cut differently is left out; this is the baseline which SimCT has to beat. Two models
of one tokenizer cut nothing differently and share every id: it is then plain distillation over the full vocabulary.
"""

from __future__ import annotations

import torch

from simct_pl.losses.base import Objective, UnitChunk, UnitLosses
from simct_pl.losses.columns.column_logprobs import column_logprobs
from simct_pl.losses.divergences import DivergenceName, named_divergence


class SharedVocabLoss(Objective):
    """D(q_student, q_teacher) over the shared tokens, at 1:1 units of a shared token.

    With one tokenizer on both sides, D(p_student, p_teacher) over all ids (control tokens too) at every token, for each
    divergence.

    Args:
        divergence: rkl | kl | jsd | skl | srkl | akl | tvd | top1_ce.
        jsd_beta: weight of the teacher in `jsd`. skew: interpolation of `skl` and `srkl`.

    Raises:
        RecipeError: for an unknown name.
    """

    def __init__(self, divergence: DivergenceName = "rkl", jsd_beta: float = 0.5, skew: float = 0.1) -> None:
        self._divergence = named_divergence(divergence, jsd_beta=jsd_beta, skew=skew)
        self._description = {"divergence": divergence, "jsd_beta": jsd_beta, "skew": skew}

    def __call__(self, chunk: UnitChunk) -> UnitLosses:
        rows = chunk.rows
        student_logp_UV = column_logprobs(chunk.student.first_logp_UK, chunk.tables.student, marginal=False)
        with torch.no_grad():
            teacher_logp_UV = column_logprobs(chunk.teacher.first_logp_UK, chunk.tables.teacher, marginal=False)
        loss_U = self._divergence(student_logp_UV.log_softmax(-1), teacher_logp_UV.log_softmax(-1))
        supervised_U = rows.one_to_one_U & (rows.column_U >= 0)
        return UnitLosses(
            loss_U.masked_fill(~supervised_U, 0.0),
            supervised_U,
            student_logp_UV.detach().logsumexp(-1),
            teacher_logp_UV.logsumexp(-1),
        )

    def describe(self) -> dict[str, object]:
        return {"objective": type(self).__name__, **self._description}
