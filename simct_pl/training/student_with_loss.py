"""The student with its loss behind it: one module whose forward takes a micro-batch and returns the loss sum.

FSDP2 gathers the lm_head (and the embeddings, and the last norm: what is outside the decoder blocks) only inside the
root module's forward, and reduces its gradients after backward; so decoder and chunked loss both run in this one.
Without sharding it is a module like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from simct_pl.losses.inputs.vocab_tables import PairTables
from simct_pl.models.bits_per_byte import Reference, bits_of
from simct_pl.models.lm_head import response_states
from simct_pl.models.lora import trained_parameters
from simct_pl.training.anchor import Anchor
from simct_pl.training.graded_batch import GradedBatch
from simct_pl.training.pair_loss import PairLoss
from simct_pl.training.step_timer import PhaseTimer
from simct_pl.training.unit_stats import join_stats
from simct_pl.types import Rollout, UnitStats


class StudentWithLoss(nn.Module):
    """A student and what computes its loss.

    Every rank must run the same number of forwards when the student is sharded; one without any response reads a single
    token, computes no loss, and still runs backward through all of the student.

    Args:
        student: registered. losses: a teacher's each, in the order of a GradedBatch's teachers.
        anchor: not registered; without gradients, as in validation, it is left out.
        phases: timed.
    """

    def __init__(
        self,
        student: PreTrainedModel,
        losses: Mapping[str, PairLoss],
        phases: PhaseTimer,
        anchor: Anchor | None = None,
    ) -> None:
        super().__init__()
        self.student, self.losses = student, nn.ModuleList(losses.values())  # a teacher's name may be any
        self.phases, self.anchor = phases, anchor
        self._places = {name: i for i, name in enumerate(losses)}

    def loss_of(self, teacher: str) -> PairLoss:
        """What one teacher says."""
        found = self.losses[self._places[teacher]]
        assert isinstance(found, PairLoss)
        return found

    @property
    def by_teacher(self) -> dict[str, PairLoss]:
        """Of all teachers, in their order."""
        return {name: self.loss_of(name) for name in self._places}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """For an optimizer: what is trained of the student, and the projectors' with their own learning rate."""
        groups: list[dict[str, Any]] = [{"params": trained_parameters(self.student)}]
        projected = [one for one in self.by_teacher.values() if one.projectors is not None]
        return groups + [{"params": list(one.parameters()), "lr": one.objective.projector_lr} for one in projected]

    def metrics(self) -> dict[str, float]:
        """What a step has to log of its teachers; by their names, where there are several."""
        found = {name: one.teacher.metrics() for name, one in self.by_teacher.items()}
        if len(found) == 1:
            return next(iter(found.values()))
        return {
            key.replace("teacher/", f"teacher/{name}/"): value
            for name, of in found.items()
            for key, value in of.items()
        }

    def forward(
        self, rollouts: Sequence[Rollout], align: Callable[[], GradedBatch], tables: Mapping[str, PairTables]
    ) -> tuple[Tensor, UnitStats]:
        """Loss summed over all units of a micro-batch, weighted by teacher, and the units' statistics, unweighted.

        align: these rollouts aligned; asked for when the student has read them, since a thread may be at it meanwhile.
        tables: by teacher.
        """
        with self.phases("student_forward"):
            student = response_states(
                self.student, [r.prompt_ids for r in rollouts], [r.response_ids for r in rollouts]
            )
        with self.phases("alignment"):
            graded = align()
        device, anchor = student.hidden_NH.device, None
        if self.anchor is not None and torch.is_grad_enabled():
            with self.phases("teacher"):
                anchor = self.anchor.states(rollouts, device)
        self.phases.count_worker(graded.seconds)
        self.phases.count_forward("student", student.num_tokens, student.num_positions)
        lengths, sums, stats = [len(r.response_ids) for r in rollouts], [], []
        for grading in graded.gradings:
            one = self.loss_of(grading.teacher)
            # Asked with nothing to grade, too: ranks may share the teacher, and another has something.
            teacher = one.read(grading.aligned, device)
            if not grading.members and rollouts and one.projectors is None:
                continue
            hidden_NH = grading.rows(student.hidden_NH, lengths)
            held = None if anchor is None else replace(anchor, hidden_NH=grading.rows(anchor.hidden_NH, lengths))
            part = grading.pick(rollouts)
            loss, found = one(self.student, hidden_NH, teacher, part, grading.aligned, tables[grading.teacher], held)
            sums.append(loss if grading.weight == 1 else loss * grading.weight)
            stats.append(found)
        return sum(sums[1:], sums[0]), join_stats(stats)

    def bits(self, references: Sequence[Reference]) -> float:
        """Sum of -log2 p(response | prompt) of one micro-batch of references; run as a forward when sharded."""
        return bits_of(self.student, references, next(iter(self.by_teacher.values())).chunk_tokens)
