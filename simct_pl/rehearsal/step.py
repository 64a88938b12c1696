"""One training step, rehearsed: forwards, loss, backward and optimizer of a micro-batch, as DistillModule runs them.

In: what a step is made of, weights excepted. Out: a StepReport. Gradients and moments are there before, as from the
second micro-batch of the second step on, so that the peak is that of the whole run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from typing_extensions import override

from simct_pl.losses.base import Objective
from simct_pl.losses.dual_space import DualSpaceObjective
from simct_pl.losses.inputs.vocab_tables import PairTables
from simct_pl.models.sharding import Sharding
from simct_pl.rehearsal.device import FakeDevice
from simct_pl.rehearsal.ledger import Ledger
from simct_pl.rehearsal.models import ModelSource, build
from simct_pl.training.aligned_batch import AlignedBatch
from simct_pl.training.optim import GuardedStep, OptimizerConfig
from simct_pl.training.step_timer import PhaseTimer
from simct_pl.training.student_with_loss import StudentWithLoss
from simct_pl.training.teacher import FrozenTeacher
from simct_pl.types import Rollout

STUDENT, TEACHER, STATE = "student weights", "teacher weights", "AdamW moments"


@dataclass(frozen=True)
class MicroBatch:
    """Responses that one forward reads, and what their loss needs."""

    rollouts: Sequence[Rollout]
    aligned: AlignedBatch
    tables: PairTables


@dataclass(frozen=True)
class StepParts:
    """What a step is made of; the names are those of DistillModule's arguments.

    autocast: the student's products run in bf16. num_ranks: that share the student, if sharding is given; this is one
    of them. keeps_gradients: further micro-batches come before the optimizer's step, so that gradients are there.
    """

    student: ModelSource
    teacher: ModelSource
    objective: Objective | DualSpaceObjective
    micro_batch: MicroBatch
    student_dtype: torch.dtype = torch.float32
    teacher_dtype: torch.dtype = torch.bfloat16
    autocast: bool = False
    gradient_checkpointing: bool = True
    chunk_tokens: int = 1024
    teacher_batch_tokens: int = 16_384
    sharding: Sharding | None = None
    num_ranks: int = 1
    keeps_gradients: bool = True
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)


class Phases(PhaseTimer):
    """Names the phases of a step to a ledger, and takes no time."""

    def __init__(self, ledger: Ledger, started: Callable[[str], None]) -> None:
        super().__init__()
        self.ledger, self.started = ledger, started

    @override
    def __call__(self, phase: str) -> ExitStack:  # type: ignore[override]
        self.started(phase)
        inside = ExitStack()
        inside.enter_context(self.ledger.phase_of(phase))
        return inside


def rehearse(parts: StepParts, device: str, started: Callable[[str], None] = lambda _: None) -> Ledger:
    """One micro-batch and the optimizer's step.

    device: see FakeDevice. started: told the name of each phase as it begins.

    Raises:
        UnsupportedModelError: if a model cannot be built, or not be sharded.
        UnknownValue, TooManyOperators: if the step cannot be followed.
    """
    mode = FakeDevice(device)
    ledger = mode.ledger
    with ExitStack() as inside:
        started("models")
        student = build(parts.student, parts.student_dtype, mode, STUDENT).train()
        teacher = build(parts.teacher, parts.teacher_dtype, mode, TEACHER).eval().requires_grad_(False)
        if parts.sharding is not None:
            inside.enter_context(fake_ranks(parts.num_ranks))
        inside.enter_context(mode)
        if parts.gradient_checkpointing:
            student.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        phases = Phases(ledger, started)
        frozen = FrozenTeacher.of(teacher, parts.teacher_batch_tokens)
        graded = StudentWithLoss(student, frozen, parts.objective, parts.chunk_tokens, phases)
        if parts.sharding is not None:
            mesh = init_device_mesh(device, (parts.num_ranks,))
            parts.sharding.shard_student(graded, student, parts.sharding.mesh(mesh))
        optimizer, scheduler = parts.optimizer.build(graded.parameter_groups(), 10)
        guarded = GuardedStep(parts.optimizer.max_grad_norm)
        _set_gradients(graded)
        guarded(graded.parameters(), optimizer, scheduler)
        if parts.keeps_gradients:
            _set_gradients(graded)
        tables = parts.micro_batch.tables.to(mode.device)
        ledger.forget()
        batch = parts.micro_batch
        with torch.autocast(device, dtype=torch.bfloat16, enabled=parts.autocast):
            loss, _ = graded(batch.rollouts, lambda: batch.aligned, tables)
        with phases("student_backward"):
            (loss * 0.5).backward()
        del loss
        with phases("optimizer"):
            guarded(graded.parameters(), optimizer, scheduler)
    return ledger


def _set_gradients(module: nn.Module) -> None:
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)


@contextmanager
def fake_ranks(num_ranks: int) -> Iterator[None]:
    """A process group of so many ranks, of which this is the first and the only one: what it is sent has its size."""
    import torch.distributed._tools.fake_collectives
    from torch.testing._internal.distributed.fake_pg import FakeStore

    torch.distributed.init_process_group("fake", rank=0, world_size=num_ranks, store=FakeStore())
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()
