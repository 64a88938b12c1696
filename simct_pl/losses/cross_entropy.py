"""Cross-entropy on the response, -log p_S(unit): on the teacher's responses (callbacks.TeacherRollout) this is SeqKD
(arXiv 1606.07947); on the student's own ones it teaches nothing.
"""

from __future__ import annotations

import torch

from simct_pl.losses.base import Objective, UnitChunk, UnitLosses


class CrossEntropyLoss(Objective):
    """Negative log-likelihood of each unit under the student, summed over its tokens. No teacher's logit is read."""

    def __call__(self, chunk: UnitChunk) -> UnitLosses:
        loss_U = -chunk.student.unit_logp_U
        return UnitLosses.over_everything(loss_U, torch.ones_like(loss_U, dtype=torch.bool))

    def describe(self) -> dict[str, object]:
        return {"objective": type(self).__name__}
