"""How many continuations off the sampled path a step graded, what they held, and what was left out, by reason."""

from __future__ import annotations

from typing import get_args

import lightning as L
from typing_extensions import override

from callbacks.distilled import distilled
from simct_pl.errors import RecipeError
from simct_pl.module import DistillModule
from simct_pl.phases import Side
from simct_pl.scoring.continued import StudentWithContinuations
from simct_pl.scoring.proposals import LeftOut
from simct_pl.types import PromptBatch


class ContinuationStats(L.Callback):
    """Logs, for each side ("student", "teacher") whose likeliest tokens become candidates:

    align/<side>_continuations: candidates a unit. align/<side>_unshared_mass: mean probability, at unit starts, of
        tokens that the other side does not own. align/<side>_left_out_<reason>: tokens that were likely enough and are
        no candidate (simct_pl.scoring.proposals.LeftOut).
    align/<side>_nodes: tokens a response that this side read beside the responses.
    """

    @override
    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Raises:
        RecipeError: if the objective has no continuations.
        """
        objective = distilled(self, pl_module).objective
        if objective.continuations is None:
            raise RecipeError(
                f"ContinuationStats with objective {type(objective).__name__}: it has no continuations. "
                "Leave the callback out, or use simct_pl.ContinuationLoss with student_k or teacher_k above 0."
            )

    @override
    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: PromptBatch, batch_idx: int
    ) -> None:
        graded = _graded(pl_module)
        graded.counts.clear()  # validation counts too
        graded.unshared_mass.clear()

    @override
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: object, batch: PromptBatch, batch_idx: int
    ) -> None:
        pl_module.log_dict(continuation_metrics(_graded(pl_module)), batch_size=len(batch), sync_dist=True)


def continuation_metrics(graded: StudentWithContinuations) -> dict[str, float]:
    """All names at every step, also at zero: ranks that log other names would wait for each other for ever."""
    counts, metrics = graded.counts, {}
    num_units, num_responses = max(counts["units"], 1), max(counts["responses"], 1)
    for side in get_args(Side):
        metrics[f"align/{side}_continuations"] = counts[f"{side}_proposed"] / num_units
        metrics[f"align/{side}_unshared_mass"] = graded.unshared_mass[side] / num_units
        metrics[f"align/{side}_nodes"] = counts[f"{side}_nodes"] / num_responses
        metrics |= {f"align/{side}_left_out_{reason}": float(counts[f"{side}_{reason}"]) for reason in LeftOut}
    return metrics


def _graded(pl_module: L.LightningModule) -> StudentWithContinuations:
    assert isinstance(pl_module, DistillModule)
    assert isinstance(pl_module.graded, StudentWithContinuations)
    return pl_module.graded
