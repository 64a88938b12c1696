"""One micro-batch and one optimizer step of a model in training, rehearsed.

In: how the model is trained, and what computes its loss. Out: the Ledger of it. AdamW's moments are there before, as
from the second step on, and gradients if further micro-batches come first: the most bytes are those of the whole run.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from typing_extensions import override

from simct_pl.models.lora import Lora, trained_parameters
from simct_pl.models.sharding import Sharding
from simct_pl.rehearsal.attention import as_on_a_gpu
from simct_pl.rehearsal.device import FakeDevice
from simct_pl.rehearsal.ledger import Ledger
from simct_pl.rehearsal.models import ModelSource, build
from simct_pl.training.optim import GuardedStep, OptimizerConfig
from simct_pl.training.step_timer import PhaseTimer

# What holds bytes by these names, beside lines of code.
TRAINED, GRADIENTS, MOMENTS, TEACHER = "trained weights", "gradients", "AdamW moments", "teacher weights"
FROZEN = "frozen weights"  # of a student with adapters
BACKWARD, OPTIMIZER = "student_backward", "optimizer"
NUM_STEPS = 10  # of the schedule; any number does
Started = Callable[[str], None]


@dataclass(frozen=True)
class Training:
    """How a model is trained.

    dtype: of its weights. autocast: products run in bf16. sharding: over num_ranks, of which this is one; null: it is
    whole. keeps_gradients: further micro-batches come before the optimizer's step. lora: the adapters, if these alone
    are trained.
    """

    source: ModelSource
    dtype: torch.dtype = torch.float32
    autocast: bool = False
    gradient_checkpointing: bool = True
    sharding: Sharding | None = None
    num_ranks: int = 1
    keeps_gradients: bool = True
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    lora: Lora | None = None


class Phases(PhaseTimer):
    """Tells a ledger, and whoever shows progress, which phase of the step begins; takes no time."""

    def __init__(self, ledger: Ledger, started: Started) -> None:
        super().__init__()
        self.ledger, self.started = ledger, started

    @override
    def __call__(self, phase: str) -> AbstractContextManager[None]:
        self.started(phase)
        return self.ledger.phase_of(phase)


@dataclass(frozen=True)
class Stage:
    """Where a step is rehearsed. mesh: of the ranks that share the model, if any do."""

    mode: FakeDevice
    phases: Phases
    mesh: DeviceMesh | None


@dataclass(frozen=True)
class WithLoss:
    """root: the module that is optimised, and sharded as a whole. forward: its loss for a micro-batch. groups: its
    parameters for an optimizer, asked for when it has been sharded.
    """

    root: nn.Module
    forward: Callable[[], Tensor]
    groups: Callable[[], list[dict[str, Any]]]


def rehearse(
    training: Training,
    with_loss: Callable[[PreTrainedModel, Stage], WithLoss],
    device: str,
    started: Started = lambda _: None,
) -> Ledger:
    """Run the step; phases are those of PhaseTimer.

    with_loss: puts the loss behind the model, which is whole and in training mode. device: see FakeDevice. started:
    told the name of each phase as it begins.

    Raises:
        UnsupportedModelError: if a model cannot be built, sharded or followed.
    """
    mode = FakeDevice(device)
    phases = Phases(mode.ledger, started)
    with ExitStack() as inside:
        started("models")
        mesh = None
        if training.sharding is not None:
            mesh = inside.enter_context(_fake_ranks(training.num_ranks, device, training.sharding))
        model = build(training.source, training.dtype, mode, TRAINED, training.lora).train()
        inside.enter_context(mode)
        inside.enter_context(as_on_a_gpu())
        if training.gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        loss = with_loss(model, Stage(mode, phases, mesh))
        if training.sharding is not None and mesh is not None:
            with mode.ledger.named(TRAINED):
                training.sharding.shard_student(loss.root, model, mesh)
        for parameter in model.parameters():
            if not parameter.requires_grad:
                mode.ledger.rename(parameter.to_local() if isinstance(parameter, DTensor) else parameter, FROZEN)
        _run(training, loss, mode, phases)
    return mode.ledger


def _run(training: Training, loss: WithLoss, mode: FakeDevice, phases: Phases) -> None:
    optimizer, scheduler = training.optimizer.build(loss.groups(), NUM_STEPS)
    guarded = GuardedStep(training.optimizer.max_grad_norm)
    with mode.ledger.named(MOMENTS):
        _set_gradients(loss.root)
        guarded(loss.root.parameters(), optimizer, scheduler)
    if training.keeps_gradients:
        with mode.ledger.named(GRADIENTS):
            _set_gradients(loss.root)
    gc.collect()  # whole weights that have been shared out may be in circles
    mode.ledger.forget()
    with torch.autocast(mode.device.type, dtype=torch.bfloat16, enabled=training.autocast), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of kernels that this process does not have
        result = loss.forward()
        with phases(BACKWARD):
            (result * 0.5).backward()
        del result
    with phases(OPTIMIZER):
        guarded(loss.root.parameters(), optimizer, scheduler)


def _set_gradients(module: nn.Module) -> None:
    for parameter in trained_parameters(module):
        parameter.grad = torch.zeros_like(parameter)


@contextmanager
def _fake_ranks(num_ranks: int, device: str, sharding: Sharding) -> Iterator[DeviceMesh]:
    """A process group of which this is the first rank and the only one: what it is sent has its size."""
    import torch.distributed._tools.fake_collectives
    from torch.testing._internal.distributed.fake_pg import FakeStore

    torch.distributed.init_process_group("fake", rank=0, world_size=num_ranks, store=FakeStore())
    try:
        yield sharding.mesh(init_device_mesh(device, (num_ranks,)))
    finally:
        torch.distributed.destroy_process_group()
