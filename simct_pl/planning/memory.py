"""Memory of one rank, item by item, and its peak.

In: what a rehearsal of the step held (simct_pl/rehearsal), and what lives beside it. Out: MemoryItems. What is there
all the time is told from what each phase of the step adds at its most; phases come one after another, so that of these
the most counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum

import torch

from simct_pl.planning.step import StepShape
from simct_pl.rehearsal.ledger import Ledger
from simct_pl.rehearsal.models import ModelSize
from simct_pl.rehearsal.training import FROZEN, GRADIENTS, MOMENTS, TEACHER, TRAINED


class Part(Enum):
    """What is held; the value is what a table calls it."""

    WEIGHTS = "trained weights"
    FROZEN = "frozen weights"
    GRADIENTS = "gradients"
    MOMENTS = "AdamW moments"
    BUCKETS = "DDP's buckets"
    TEACHER_WEIGHTS = "teacher weights"
    ANCHOR_WEIGHTS = "starting student's weights"
    HEADS = "gradients of the head, of other teachers' losses"
    TABLES = "tables of both vocabularies"
    ENGINE_WEIGHTS = "engine weights"
    ENGINE_CACHE = "engine KV cache"
    ENGINE_RESERVED = "engine, reserved"
    AT_WORK = "at work"


class Moment(Enum):
    """While what it is held. All but the first three are phases of TRAINING, one after another."""

    ALWAYS = "always"
    GENERATING = "generating"
    TRAINING = "training"
    FORWARD = "student forward"
    TEACHER = "teacher forward"
    LOSS = "loss"
    BACKWARD = "student backward"
    OPTIMIZER = "optimizer"


PHASE_OF = {
    "student_forward": Moment.FORWARD,
    "teacher": Moment.TEACHER,
    "loss": Moment.LOSS,
    "student_backward": Moment.BACKWARD,
    "optimizer": Moment.OPTIMIZER,
}
# What a ledger calls it, and what is in host memory with sharding.cpu_offload.
KEPT = {
    TRAINED: (Part.WEIGHTS, Moment.ALWAYS),
    FROZEN: (Part.FROZEN, Moment.ALWAYS),
    GRADIENTS: (Part.GRADIENTS, Moment.TRAINING),
    MOMENTS: (Part.MOMENTS, Moment.ALWAYS),
    TEACHER: (Part.TEACHER_WEIGHTS, Moment.ALWAYS),
}
OFFLOADED = (Part.WEIGHTS, Part.FROZEN, Part.GRADIENTS, Part.MOMENTS)


@dataclass(frozen=True)
class MemoryItem:
    """Bytes of one rank."""

    part: Part
    bytes: float
    when: Moment = Moment.ALWAYS


def peak_bytes(items: Sequence[MemoryItem]) -> float:
    """Most that one rank holds."""
    held = {moment: sum(item.bytes for item in items if item.when is moment) for moment in Moment}
    training = held[Moment.TRAINING] + max(held[one] for one in PHASE_OF.values())
    return held[Moment.ALWAYS] + max(held[Moment.GENERATING], training)


def rehearsed_items(ledger: Ledger, step: StepShape) -> list[MemoryItem]:
    """What was there before the step, and what each of its phases added at its most."""
    items = [MemoryItem(*_named(name, size)) for name, size in ledger.at_rest.items()]
    tables = sum(item.bytes for item in items if item.part is Part.TABLES)
    items = [item for item in items if item.part is not Part.TABLES] + [MemoryItem(Part.TABLES, tables)]
    rest = sum(ledger.at_rest.values())
    items += [
        MemoryItem(Part.AT_WORK, ledger.most_in[phase] - rest, when)
        for phase, when in PHASE_OF.items()
        if phase in ledger.most_in
    ]
    if step.teacher == "server":
        items = [item for item in items if item.part != Part.TEACHER_WEIGHTS and item.when is not Moment.TEACHER]
    return [item for item in items if item.bytes > 0 and not (step.cpu_offload and item.part in OFFLOADED)]


def _named(name: str, size: int) -> tuple[Part, float, Moment]:
    part, when = KEPT.get(name, (Part.TABLES, Moment.ALWAYS))
    return part, size, when


def counted_items(sizes: dict[str, ModelSize], step: StepShape) -> list[MemoryItem]:
    """Weights, gradients and moments alone, where a step could not be rehearsed; what is trained is named first."""
    trained, *others = sizes.values()
    state = _trained_bytes(trained, step) / step.student_shards
    frozen = 0 if trained.trained is None else trained.parameters - trained.trained
    items = [
        MemoryItem(Part.WEIGHTS, state),
        MemoryItem(Part.FROZEN, frozen * step.dtype.itemsize / step.student_shards),
        MemoryItem(Part.GRADIENTS, state, Moment.TRAINING),
        MemoryItem(Part.MOMENTS, 2 * state),
    ]
    if step.teacher != "server":
        items += [MemoryItem(Part.TEACHER_WEIGHTS, _frozen_bytes(size, step)) for size in others]
    return [item for item in items if item.bytes > 0 and not (step.cpu_offload and item.part in OFFLOADED)]


def _trained_bytes(size: ModelSize, step: StepShape) -> float:
    """Of what AdamW steps; adapters are in fp32 whatever the student's weights are in."""
    if size.trained is None:
        return size.parameters * step.dtype.itemsize
    return size.trained * max(step.dtype.itemsize, torch.float32.itemsize)


def packed(
    items: Sequence[MemoryItem], teacher: ModelSize, step: StepShape, bits_a_weight: float | None
) -> list[MemoryItem]:
    """The items, with a teacher whose decoder blocks are quantised; None leaves them as they are."""
    saved = _saved_bytes(teacher, step.teacher_dtype, bits_a_weight)
    return [replace(item, bytes=item.bytes - saved) if item.part is Part.TEACHER_WEIGHTS else item for item in items]


def another_teacher(size: ModelSize, dtype: torch.dtype, step: StepShape, bits_a_weight: float | None) -> MemoryItem:
    """Weights of a teacher beside the one that was rehearsed."""
    whole = _frozen_bytes(size, replace(step, teacher_dtype=dtype))
    return MemoryItem(Part.TEACHER_WEIGHTS, whole - _saved_bytes(size, dtype, bits_a_weight))


def heads_of(num: int, rows: int, width: int) -> MemoryItem:
    """A gradient of the student's head for each of so many losses beside the first, in fp32: all wait for backward."""
    return MemoryItem(Part.HEADS, num * rows * width * torch.float32.itemsize, Moment.TRAINING)


def _saved_bytes(size: ModelSize, dtype: torch.dtype, bits_a_weight: float | None) -> float:
    return sum(size.blocks) * (dtype.itemsize - bits_a_weight / 8) if bits_a_weight else 0


def _frozen_bytes(size: ModelSize, step: StepShape) -> float:
    """Weights of a model that only reads, on one rank."""
    shared = sum(size.blocks) * (1 - 1 / step.shard_size) if step.teacher == "sharded" else 0
    return (size.parameters - shared) * step.teacher_dtype.itemsize


def items_beside(trained: ModelSize, cache: int, step: StepShape) -> list[MemoryItem]:
    """What is no part of a rehearsal: DDP's second copy of the gradients, the starting student of an anchor, and the
    engine that lives beside the trainer.

    cache: bytes of one sequence that the student generates.
    """
    items = [MemoryItem(Part.BUCKETS, _trained_bytes(trained, step))] if step.buckets else []
    if step.anchor:
        items.append(MemoryItem(Part.ANCHOR_WEIGHTS, _frozen_bytes(trained, step)))
    if step.engine == "server":
        return items
    if step.reserved_bytes:
        return [*items, MemoryItem(Part.ENGINE_RESERVED, step.reserved_bytes)]
    weights = trained.parameters * step.engine_dtype.itemsize if step.engine == "copy" else 0
    held = (
        MemoryItem(Part.ENGINE_WEIGHTS, weights),
        MemoryItem(Part.ENGINE_CACHE, step.num_sequences * cache, Moment.GENERATING),
    )
    return items + [item for item in held if item.bytes > 0]
