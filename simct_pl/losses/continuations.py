"""SimCT with mass-preserving candidates, and continuations that the response did not take among them.

In: a chunk of units whose rows carry paths (simct_pl.scoring.paths), and what both models give their later tokens.
Out: a divergence a unit over shared tokens ∪ {unit} ∪ continuations (docs/continuations.md). Without continuations it
is SimCTLoss with `sum_logprob` and `marginal`, to the bit.
"""

from __future__ import annotations

import torch
from torch import Tensor

from simct_pl.losses.base import Objective, UnitChunk, UnitLosses
from simct_pl.losses.divergences import DivergenceName, named_divergence
from simct_pl.losses.simct import SimCTLoss
from simct_pl.scoring.columns import column_logprobs
from simct_pl.scoring.paths import PathRows, carve_paths
from simct_pl.scoring.proposals import Continuations
from simct_pl.scoring.side import SideChunk


class ContinuationLoss(Objective):
    """D(q_student, q_teacher) over the shared tokens, the unit, and a few continuations that either model prefers.

    Args:
        continuations: how many, and where.
        divergence: rkl | kl | jsd | skl | srkl | akl | tvd | top1_ce.
        jsd_beta: weight of the teacher in `jsd`. skew: interpolation of `skl` and `srkl`.

    Raises:
        RecipeError: for an unknown name.
    """

    def __init__(
        self,
        continuations: Continuations = Continuations(),  # noqa: B008 - frozen
        divergence: DivergenceName = "rkl",
        jsd_beta: float = 0.5,
        skew: float = 0.1,
    ) -> None:
        self.continuations = continuations if continuations.num_slots else None
        self._without = SimCTLoss("sum_logprob", "marginal", divergence=divergence, jsd_beta=jsd_beta, skew=skew)
        self._divergence = named_divergence(divergence, jsd_beta=jsd_beta, skew=skew)
        self._description = dict(continuations.__dict__, divergence=divergence, jsd_beta=jsd_beta, skew=skew)

    def __call__(self, chunk: UnitChunk) -> UnitLosses:
        if self.continuations is None:
            return self._without(chunk)
        paths, later = chunk.rows.paths, chunk.later
        assert paths is not None, "the units carry no continuations"
        assert later is not None
        student_UC = _scores(chunk.student, paths.student, later.student_E, paths.num_slots)
        with torch.no_grad():
            teacher_UC = _scores(chunk.teacher, paths.teacher, later.teacher_E, paths.num_slots)
        loss_U = self._divergence(student_UC.log_softmax(-1), teacher_UC.log_softmax(-1))
        supervised_U = torch.ones_like(loss_U, dtype=torch.bool)
        return UnitLosses(loss_U, supervised_U, student_UC.detach().logsumexp(-1), teacher_UC.logsumexp(-1))

    def describe(self) -> dict[str, object]:
        return {"objective": type(self).__name__, **self._description}


def _scores(side: SideChunk, rows: PathRows, later_E: Tensor, num_slots: int) -> Tensor:
    """Log-probability of every candidate, [U, V + num_slots]; -inf where a unit has no such path."""
    first_logp_UK, paths_UE = carve_paths(side, rows, later_E, num_slots)
    return torch.cat([column_logprobs(first_logp_UK, side.tables, marginal=True), paths_UE], -1)
