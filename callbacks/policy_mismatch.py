"""Does the engine sample from the policy that is trained? Log-probabilities of the sampled tokens, engine against
trainer.
"""

from __future__ import annotations

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from typing_extensions import override

from simct_pl.types import STUDENT_END, STUDENT_START, PromptBatch, StepRecord


class PolicyMismatch(L.Callback):
    """Logs `policy/mismatch_mean` and `policy/mismatch_p99` (absolute difference in nats, temperature 1) and
    `policy/lag`.

    Args:
        mean_limit, p99_limit: a warning is given, once, when a step exceeds them.
    """

    only_reports = True

    def __init__(self, mean_limit: float = 0.1, p99_limit: float = 0.5) -> None:
        self.mean_limit, self.p99_limit = mean_limit, p99_limit
        self._warned = False

    @override
    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: PromptBatch, batch_idx: int
    ) -> None:
        own = [rollout for rollout in batch.rollouts or [] if rollout.author == "student"]
        if own:
            lag = max(trainer.global_step - rollout.policy_version for rollout in own)
            pl_module.log("policy/lag", float(lag), batch_size=len(batch))

    @override
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: object, batch: PromptBatch, batch_idx: int
    ) -> None:
        assert batch.record is not None
        gap_N = logprob_gap(batch.record.own)  # of the teacher's words the engine knows nothing
        if len(gap_N) == 0:
            return
        mean, p99 = gap_N.mean().item(), gap_N.quantile(0.99).item()
        pl_module.log_dict({"policy/mismatch_mean": mean, "policy/mismatch_p99": p99}, batch_size=len(gap_N))
        if not self._warned and (mean > self.mean_limit or p99 > self.p99_limit):
            self._warned = True
            rank_zero_warn(
                f"Engine and trainer disagree about the sampled tokens: mean {mean:.3f} (limit {self.mean_limit}), "
                f"p99 {p99:.3f} (limit {self.p99_limit}) nats. The rollouts are not from the policy that is trained; "
                "check dtype and refresh."
            )


def logprob_gap(record: StepRecord) -> Tensor:
    """|engine - trainer| log-probability of each sampled token that lies in a supervised unit, [N] float64."""
    gaps = [torch.zeros(0, dtype=torch.float64)]
    for rollout, alignment, stats in zip(record.rollouts, record.alignments, record.stats, strict=True):
        units_U6 = alignment.units_U6[alignment.supervised_U]
        # The trainer knows the tokens of supervised units alone; the engine's numbers are picked at the same places.
        positions = [i for unit in units_U6 for i in range(unit[STUDENT_START], unit[STUDENT_END])]
        engine_N = torch.tensor(rollout.engine_logprobs, dtype=torch.float64)[positions]
        gaps.append((engine_N - stats.token_logprobs_N.double()).abs())
    return torch.cat(gaps)
