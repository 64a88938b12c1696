"""The anchor: KL(student || starting student) at every student token of a unit, over the whole vocabulary.

In: the starting student, frozen, and a weight. Out: one more source of logits for the chunked loss, and a part of each
unit's loss. Both read the same tokens, so nothing is aligned and nothing left out; logits exist for a chunk at a time,
as everybody's. Source of the idea: SimpleOPD (arXiv 2608.14277); the divergence is that of RLHF's penalty.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from simct_pl.losses.base import PostedUnits, UnitChunk, UnitLosses
from simct_pl.losses.divergences import reverse_kl
from simct_pl.losses.inputs.logprobs import at_least_fp32
from simct_pl.models.lm_head import LMHead, ResponseStates, response_states
from simct_pl.models.merging import without_adapters
from simct_pl.training.logit_source import ComputeLosses, LogitSource
from simct_pl.training.teacher import FrozenTeacher
from simct_pl.types import Rollout


@dataclass(frozen=True, eq=False)
class AnchorStates:
    """What a frozen student makes of some responses.

    hidden_NH: rows as the student's. head: reads them. weight: of the divergence, per student token.
    """

    hidden_NH: Tensor
    head: LMHead
    weight: float

    def join(self, sources: Sequence[LogitSource], compute: ComputeLosses) -> tuple[list[LogitSource], ComputeLosses]:
        """The sources and one more; losses with UnitLosses.anchor_U."""

        def anchored(logits: Sequence[Tensor], units: PostedUnits) -> tuple[UnitChunk, UnitLosses]:
            *others, anchor_NK = logits
            # Before the objective: what it does with the logits cannot matter here.
            log_student_NK = at_least_fp32(logits[0]).log_softmax(-1)
            kl_N = reverse_kl(log_student_NK, at_least_fp32(anchor_NK).log_softmax(-1))
            chunk, losses = compute(others, units)
            return chunk, replace(losses, anchor_U=self.weight * chunk.student.sum_by_unit(kl_N))

        return [*sources, LogitSource(self.hidden_NH.detach(), self.head, "student")], anchored


class AdaptersOff:
    """The starting student of adapters that began as nothing: the student itself with its adapters switched off. It
    reads what the student has just read, in one forward as well, under the trainer's autocast.
    """

    def __init__(self, student: PreTrainedModel) -> None:
        self.model = student

    @property
    def head(self) -> LMHead:
        return LMHead.of(self.model)

    def to(self, device: torch.device) -> AdaptersOff:
        """It is where the student is."""
        return self

    @torch.no_grad()
    def states(self, prompt_ids: Sequence[Sequence[int]], response_ids: Sequence[Sequence[int]]) -> ResponseStates:
        """See FrozenTeacher.states."""
        was_training = self.model.training
        self.model.eval()
        try:
            with without_adapters(self.model):
                return response_states(self.model, prompt_ids, response_ids)
        finally:
            self.model.train(was_training)


@dataclass(frozen=True, eq=False)
class Anchor:
    """The starting student and how strongly the student is held to it; no nn.Module, for FrozenTeacher's reason."""

    model: FrozenTeacher | AdaptersOff
    weight: float

    def states(self, rollouts: Sequence[Rollout], device: torch.device) -> AnchorStates:
        """Collective where the model is sharded."""
        prompt_ids, response_ids = [r.prompt_ids for r in rollouts], [r.response_ids for r in rollouts]
        found = self.model.to(device).states(prompt_ids, response_ids)
        return AnchorStates(found.hidden_NH, self.model.head, self.weight)
