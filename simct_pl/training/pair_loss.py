"""What one teacher says of responses that the student has read: its own forward, and the objective between the two.

In: the student's states, responses in both models' tokens. Out: the loss sum and its statistics. It runs inside
StudentWithLoss's forward, where the student's head is whole.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from simct_pl.losses.base import Objective
from simct_pl.losses.dual_space import DualSpaceObjective, PairStates, SideStates
from simct_pl.losses.inputs.vocab_tables import PairTables
from simct_pl.models.lm_head import LMHead, ResponseStates
from simct_pl.tokenization.pair import TokenizerPair
from simct_pl.training.aligned_batch import AlignedBatch
from simct_pl.training.anchor import AnchorStates
from simct_pl.training.chunked_loss import chunked_loss
from simct_pl.training.dual_space_loss import dual_space_loss
from simct_pl.training.step_timer import PhaseTimer
from simct_pl.training.teacher import FrozenTeacher
from simct_pl.training.teacher_server import RemoteTeacher
from simct_pl.types import Rollout, UnitStats


class PairLoss(nn.Module):
    """The loss of a student under one teacher.

    Args:
        teacher: not registered, or elsewhere. objective, chunk_tokens, strip_bytes: see chunked_loss.
        phases: timed. projectors: registered, what the objective's build_projectors made; null for most.
    """

    def __init__(
        self,
        teacher: FrozenTeacher | RemoteTeacher,
        objective: Objective | DualSpaceObjective,
        chunk_tokens: int,
        phases: PhaseTimer,
        projectors: nn.Module | None = None,
        strip_bytes: int | None = None,
    ) -> None:
        super().__init__()
        self.teacher, self.objective, self.projectors = teacher, objective, projectors
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
    ) -> PairLoss:
        """With all that the objective needs beside the models; the student is not sharded yet."""
        projectors = None
        if isinstance(objective, DualSpaceObjective):
            assert isinstance(teacher, FrozenTeacher)
            projectors = objective.build_projectors(student, teacher.model, pair)
        return cls(teacher, objective, chunk_tokens, phases, projectors)

    def read(self, aligned: AlignedBatch, device: torch.device) -> ResponseStates:
        """The teacher's states of the responses; it is moved to the device."""
        with self.phases("teacher"):
            found = self.teacher.to(device).states(aligned.teacher_prompt_ids, aligned.teacher_response_ids)
        self.phases.count_forward("teacher", found.num_tokens, found.num_positions)
        return found

    def forward(
        self,
        student: PreTrainedModel,
        student_hidden_NH: Tensor,
        teacher: ResponseStates,
        rollouts: Sequence[Rollout],
        aligned: AlignedBatch,
        tables: PairTables,
        anchor: AnchorStates | None,
    ) -> tuple[Tensor, UnitStats]:
        """Loss summed over all units of the responses, and their statistics.

        student: whose head is trained. teacher: what `read` gave. anchor: its states of the same responses.
        """
        with self.phases("loss"):
            if isinstance(self.objective, DualSpaceObjective):
                return self._dual_space_loss(
                    student, student_hidden_NH, teacher.hidden_NH, rollouts, aligned, tables, anchor
                )
            return chunked_loss(
                student_hidden_NH,
                teacher.hidden_NH,
                aligned.rows,
                student_head=LMHead.of(student),
                teacher_head=self.teacher.head,
                objective=self.objective,
                tables=tables,
                chunk_tokens=self.chunk_tokens,
                strip_bytes=self.strip_bytes,
                anchor=anchor,
            )

    def _dual_space_loss(
        self,
        student: PreTrainedModel,
        student_hidden_NH: Tensor,
        teacher_hidden_MH: Tensor,
        rollouts: Sequence[Rollout],
        aligned: AlignedBatch,
        tables: PairTables,
        anchor: AnchorStates | None,
    ) -> tuple[Tensor, UnitStats]:
        assert isinstance(self.objective, DualSpaceObjective)
        assert self.projectors is not None
        assert isinstance(self.teacher, FrozenTeacher)
        teacher_ids = zip(aligned.teacher_prompt_ids, aligned.teacher_response_ids, strict=True)
        # Whole responses of both models, with the ids that they read: projectors may look at more than a chunk.
        states = PairStates(
            SideStates.of(student, student_hidden_NH, [(r.prompt_ids, r.response_ids) for r in rollouts]),
            SideStates.of(self.teacher.model, teacher_hidden_MH, teacher_ids),
            aligned.rows,
        )
        return dual_space_loss(
            states,
            student_head=LMHead.of(student),
            teacher_head=self.teacher.head,
            objective=self.objective,
            projectors=self.projectors,
            tables=tables,
            chunk_tokens=self.chunk_tokens,
            strip_bytes=self.strip_bytes,
            anchor=anchor,
        )
