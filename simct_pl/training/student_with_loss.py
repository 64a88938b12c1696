"""The student with its loss behind it: one module whose forward takes a micro-batch and returns the loss sum.

FSDP2 gathers the lm_head (and the embeddings, and the last norm: what is outside the decoder blocks) only inside the
root module's forward, and reduces its gradients after backward; so decoder and chunked loss both run in this one.
Without sharding it is a module like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from simct_pl.losses.base import Objective
from simct_pl.losses.dual_space import DualSpaceObjective, PairStates, SideStates
from simct_pl.losses.inputs.vocab_tables import PairTables
from simct_pl.models.bits_per_byte import Reference, bits_of
from simct_pl.models.lm_head import LMHead, response_states
from simct_pl.models.lora import trained_parameters
from simct_pl.tokenization.pair import TokenizerPair
from simct_pl.training.aligned_batch import AlignedBatch
from simct_pl.training.anchor import Anchor, AnchorStates
from simct_pl.training.chunked_loss import chunked_loss
from simct_pl.training.dual_space_loss import dual_space_loss
from simct_pl.training.step_timer import PhaseTimer
from simct_pl.training.teacher import FrozenTeacher
from simct_pl.training.teacher_server import RemoteTeacher
from simct_pl.types import Rollout, UnitStats


class StudentWithLoss(nn.Module):
    """A student and what computes its loss.

    Every rank must run the same number of forwards when the student is sharded; one without any response reads a single
    token, computes no loss, and still runs backward through all of the student.

    Args:
        student: registered. teacher: not registered, or elsewhere. objective, chunk_tokens, strip_bytes: see
            chunked_loss.
        anchor: not registered either; without gradients, as in validation, it is left out.
        phases: timed. projectors: registered, what the objective's build_projectors made; null for most.
    """

    def __init__(
        self,
        student: PreTrainedModel,
        teacher: FrozenTeacher | RemoteTeacher,
        objective: Objective | DualSpaceObjective,
        chunk_tokens: int,
        phases: PhaseTimer,
        projectors: nn.Module | None = None,
        strip_bytes: int | None = None,
        anchor: Anchor | None = None,
    ) -> None:
        super().__init__()
        self.student, self.projectors = student, projectors
        self.teacher, self.objective, self.anchor = teacher, objective, anchor
        self.chunk_tokens, self.strip_bytes, self.phases = chunk_tokens, strip_bytes, phases

    @classmethod
    def build(
        cls,
        student: PreTrainedModel,
        teacher: FrozenTeacher | RemoteTeacher,
        objective: Objective | DualSpaceObjective,
        pair: TokenizerPair,
        chunk_tokens: int,
        phases: PhaseTimer,
        anchor: Anchor | None = None,
    ) -> StudentWithLoss:
        """With all that the objective needs beside the models; the student is not sharded yet."""
        projectors = None
        if isinstance(objective, DualSpaceObjective):
            assert isinstance(teacher, FrozenTeacher)
            projectors = objective.build_projectors(student, teacher.model, pair)
        return cls(student, teacher, objective, chunk_tokens, phases, projectors, anchor=anchor)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """For an optimizer: what is trained of the student, and the projectors' with their own learning rate."""
        groups: list[dict[str, Any]] = [{"params": trained_parameters(self.student)}]
        if self.projectors is not None:
            groups.append({"params": list(self.projectors.parameters()), "lr": self.objective.projector_lr})
        return groups

    def forward(
        self, rollouts: Sequence[Rollout], align: Callable[[], AlignedBatch], tables: PairTables
    ) -> tuple[Tensor, UnitStats]:
        """Loss summed over all units of a micro-batch, and their statistics.

        align: these rollouts aligned; asked for when the student has read them, since a thread may be at it meanwhile.
        """
        with self.phases("student_forward"):
            student = response_states(
                self.student, [r.prompt_ids for r in rollouts], [r.response_ids for r in rollouts]
            )
        with self.phases("alignment"):
            aligned = align()
        # Only now: what the teacher reads comes out of the alignment.
        with self.phases("teacher"):
            device = student.hidden_NH.device
            teacher = self.teacher.to(device).states(aligned.teacher_prompt_ids, aligned.teacher_response_ids)
            anchor = None
            if self.anchor is not None and torch.is_grad_enabled():
                anchor = self.anchor.states(rollouts, device)
        with self.phases("loss"):
            if isinstance(self.objective, DualSpaceObjective):
                loss, stats = self._dual_space_loss(
                    rollouts, aligned, student.hidden_NH, teacher.hidden_NH, tables, anchor
                )
            else:
                loss, stats = chunked_loss(
                    student.hidden_NH,
                    teacher.hidden_NH,
                    aligned.rows,
                    student_head=LMHead.of(self.student),
                    teacher_head=self.teacher.head,
                    objective=self.objective,
                    tables=tables,
                    chunk_tokens=self.chunk_tokens,
                    strip_bytes=self.strip_bytes,
                    anchor=anchor,
                )
        self.phases.count_worker(aligned.seconds)
        self.phases.count_forward("student", student.num_tokens, student.num_positions)
        self.phases.count_forward("teacher", teacher.num_tokens, teacher.num_positions)
        return loss, stats

    def _dual_space_loss(
        self,
        rollouts: Sequence[Rollout],
        aligned: AlignedBatch,
        student_hidden_NH: Tensor,
        teacher_hidden_MH: Tensor,
        tables: PairTables,
        anchor: AnchorStates | None,
    ) -> tuple[Tensor, UnitStats]:
        assert isinstance(self.objective, DualSpaceObjective)
        assert self.projectors is not None
        assert isinstance(self.teacher, FrozenTeacher)
        teacher_ids = zip(aligned.teacher_prompt_ids, aligned.teacher_response_ids, strict=True)
        # Whole responses of both models, with the ids that they read: projectors may look at more than a chunk.
        states = PairStates(
            SideStates.of(self.student, student_hidden_NH, [(r.prompt_ids, r.response_ids) for r in rollouts]),
            SideStates.of(self.teacher.model, teacher_hidden_MH, teacher_ids),
            aligned.rows,
        )
        return dual_space_loss(
            states,
            student_head=LMHead.of(self.student),
            teacher_head=self.teacher.head,
            objective=self.objective,
            projectors=self.projectors,
            tables=tables,
            chunk_tokens=self.chunk_tokens,
            strip_bytes=self.strip_bytes,
            anchor=anchor,
        )

    def bits(self, references: Sequence[Reference]) -> float:
        """Sum of -log2 p(response | prompt) of one micro-batch of references; run as a forward when sharded."""
        return bits_of(self.student, references, self.chunk_tokens)
