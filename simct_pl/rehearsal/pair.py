"""A student under its teacher, rehearsed: what DistillModule puts behind a student, with models that have sizes only.

In: the teacher, the objective, and the responses of one micro-batch. Out: WithLoss, for `training.rehearse`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from simct_pl.losses.base import Objective
from simct_pl.losses.dual_space import DualSpaceObjective
from simct_pl.losses.inputs.vocab_tables import PairTables
from simct_pl.models.sharding import shard_teacher
from simct_pl.rehearsal.ledger import Ledger
from simct_pl.rehearsal.models import ModelSource, build
from simct_pl.rehearsal.training import TEACHER, Stage, Started, Training, WithLoss, rehearse
from simct_pl.tokenization.pair import TokenizerPair
from simct_pl.training.aligned_batch import AlignedBatch
from simct_pl.training.graded_batch import GradedBatch, Grading
from simct_pl.training.pair_loss import PairLoss
from simct_pl.training.student_with_loss import StudentWithLoss
from simct_pl.training.teacher import FrozenTeacher, ShardedTeacher
from simct_pl.types import Rollout


@dataclass(frozen=True)
class MicroBatch:
    """Responses that one forward reads, and what their loss needs, on the host."""

    rollouts: Sequence[Rollout]
    aligned: AlignedBatch
    tables: PairTables


@dataclass(frozen=True)
class Distillation:
    """What a student learns by; names are those of DistillModule's arguments.

    teacher_dtype: of the weights. pair: for objectives that make projectors of it. strip_bytes: see
    sum_over_chunks.
    """

    teacher: ModelSource
    objective: Objective | DualSpaceObjective
    micro_batch: MicroBatch
    pair: TokenizerPair | None = None
    teacher_dtype: torch.dtype = torch.bfloat16
    chunk_tokens: int = 1024
    teacher_batch_tokens: int = 16_384
    strip_bytes: int | None = None


def rehearse_distillation(
    training: Training, distillation: Distillation, device: str, started: Started = lambda _: None
) -> Ledger:
    """See `training.rehearse`."""

    def with_loss(student: PreTrainedModel, stage: Stage) -> WithLoss:
        return _with_loss(student, stage, training, distillation)

    return rehearse(training, with_loss, device, started)


def _with_loss(student: PreTrainedModel, stage: Stage, training: Training, of: Distillation) -> WithLoss:
    teacher, batch = _teacher(stage, training, of), of.micro_batch
    projectors = None
    if isinstance(of.objective, DualSpaceObjective):
        assert of.pair is not None
        projectors = of.objective.build_projectors(student, teacher.model, of.pair)
    loss = PairLoss(teacher, of.objective, of.chunk_tokens, stage.phases, projectors, of.strip_bytes)
    root = StudentWithLoss(student, {TEACHER: loss}, stage.phases)
    tables = {TEACHER: batch.tables.to(stage.mode.device)}
    graded = GradedBatch([Grading(TEACHER, [*range(len(batch.rollouts))], 1.0, batch.aligned)])

    def forward() -> Tensor:
        loss: Tensor = root(batch.rollouts, lambda: graded, tables)[0]
        return loss

    return WithLoss(root, forward, root.parameter_groups)


def _teacher(stage: Stage, training: Training, of: Distillation) -> FrozenTeacher:
    model = build(of.teacher, of.teacher_dtype, stage.mode, TEACHER)
    if training.sharding is None or not training.sharding.shard_teacher:
        return FrozenTeacher.of(model, of.teacher_batch_tokens)
    assert stage.mesh is not None
    with stage.mode.ledger.named(TEACHER):
        shard_teacher(model.requires_grad_(False), stage.mesh)
    return ShardedTeacher.of(model, of.teacher_batch_tokens)
