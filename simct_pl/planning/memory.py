"""Memory of one rank, item by item, and its peak.

In: what the models' own code was measured to hold (measure.py), and the step. Out: MemoryItems. Weights, gradients and
moments are counted, the bodies' forward and backward measured; the loss is a formula, of SimCTLoss, which
benchmarks/memory_checks.py compares with what it holds. A micro-batch runs the student's body, the teacher's, the loss,
and backward through the student, one after another: of what each needs for itself, the most counts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TypeVar

import torch

from simct_pl.errors import UnsupportedModelError
from simct_pl.models.lm_head import response_states
from simct_pl.models.sharding import decoder_blocks
from simct_pl.planning.measure import ModelSize, ModelSource, SizedModel, WorkBytes
from simct_pl.planning.step import StepShape

Measured = TypeVar("Measured")

FP32 = 4
# [rows x vocabulary] fp32 tensors of one strip that are alive together, of both sides: counted with SimCTLoss
# (sum_logprob, marginal, reverse KL) and a soft-capped student.
STRIP_TEMPORARIES = 7.5
# FSDP2 has two blocks' weights at a time: one runs, one comes.
GATHERED_BLOCKS = 2


class Part(Enum):
    """What is held; the value is what a table calls it."""

    WEIGHTS = "trained weights"
    GRADIENTS = "gradients"
    MOMENTS = "AdamW moments"
    BUCKETS = "DDP's buckets"
    TEACHER_WEIGHTS = "teacher weights"
    ENGINE_WEIGHTS = "engine weights"
    ENGINE_CACHE = "engine KV cache"
    ENGINE_RESERVED = "engine, reserved"
    GATHERED = "gathered weights"
    KEPT = "kept for backward"
    HEAD_GRADIENT = "head's gradient"
    EXCHANGED = "a block's gradients, exchanged"
    AT_WORK = "layers at work"
    TEACHER_AT_WORK = "teacher at work"
    LOSS = "loss, a chunk"


class Moment(Enum):
    """While what it is held; BACKWARD, TEACHER and LOSS are parts of TRAINING, one after another."""

    ALWAYS = "always"
    GENERATING = "generating"
    TRAINING = "training"
    BACKWARD = "student forward, backward"
    TEACHER = "teacher forward"
    LOSS = "loss"


@dataclass(frozen=True)
class MemoryItem:
    """Bytes of one rank."""

    part: Part
    bytes: float
    when: Moment = Moment.ALWAYS


def peak_bytes(items: Sequence[MemoryItem]) -> float:
    """Most that one rank holds, as if all items of a moment were alive together."""
    held = {moment: sum(item.bytes for item in items if item.when is moment) for moment in Moment}
    training = held[Moment.TRAINING] + max(held[one] for one in (Moment.BACKWARD, Moment.TEACHER, Moment.LOSS))
    return held[Moment.ALWAYS] + max(held[Moment.GENERATING], training)


# ---- measured ----


@dataclass(frozen=True)
class PairBytes:
    """What a student and a teacher hold at work.

    training: of one micro-batch through the student's body. reading: of one forward of the teacher's. cache: of one
    sequence that the student generates. None for what cannot be told; why_not says why.
    """

    student: ModelSize
    teacher: ModelSize
    training: WorkBytes | None
    reading: int | None
    cache: int | None
    why_not: tuple[str, ...] = ()

    @classmethod
    def measure(cls, student: ModelSource, teacher: ModelSource, step: StepShape) -> PairBytes:
        """Run both models' code on a micro-batch of the longest responses, without values.

        Raises:
            UnsupportedModelError: if a model cannot be built, or cannot be sharded where the step shards it.
        """
        # Three models without storage: the trained one in the dtype of its products, the teacher, the one that samples.
        trained, engine = SizedModel(student, step.param_dtype), SizedModel(student, step.engine_dtype)
        taught = SizedModel(teacher, step.teacher_dtype)
        check_shardable(trained, taught if step.teacher == "sharded" else None, step)
        # One micro-batch of the longest responses, as StudentWithLoss and FrozenTeacher read it.
        why_not: list[str] = []
        written = _responses(step.micro_batch, step.prompt_tokens, step.response_tokens)
        read = _responses(step.teacher_batch, step.prompt_tokens, step.teacher_response_tokens)
        training = told(
            lambda: trained.training(
                lambda: response_states(trained.model, *written).hidden_NH,
                checkpointing=step.checkpointing,
                autocast=step.autocast,
            ),
            why_not,
        )
        reading = told(lambda: taught.reading(lambda: response_states(taught.model, *read).hidden_NH), why_not)
        cache = 0 if step.engine == "server" else told(lambda: engine.cache(step.student_length), why_not)
        return cls(trained.size, taught.size, training, reading, cache, tuple(why_not))


def _responses(num: int, prompt_tokens: int, response_tokens: int) -> tuple[list[list[int]], list[list[int]]]:
    """Prompts and responses of these lengths; their ids do not matter."""
    return [[0] * prompt_tokens] * num, [[0] * response_tokens] * num


def told(measure: Callable[[], Measured], why_not: list[str]) -> Measured | None:
    """The measure, or None and a reason more."""
    try:
        return measure()
    except UnsupportedModelError as error:
        why_not.append(str(error))
        return None


def check_shardable(trained: SizedModel, taught: SizedModel | None, step: StepShape) -> None:
    """Refuse what FSDP2 would: a model that does not name its blocks.

    Raises:
        UnsupportedModelError: if it does not.
    """
    if step.student == "fsdp":
        decoder_blocks(trained.model)
    if taught is not None:
        decoder_blocks(taught.model)


# ---- items ----


def distillation_items(pair: PairBytes, step: StepShape) -> list[MemoryItem]:
    """What one rank of a distillation holds; what could not be measured is left out."""
    items = trained_items(pair.student, pair.training, step)
    items += _teacher_items(pair, step)
    items += _engine_items(pair, step)
    items += _loss_items(pair, step)
    return [item for item in items if item.bytes > 0]


def trained_items(size: ModelSize, work: WorkBytes | None, step: StepShape) -> list[MemoryItem]:
    """Of the model that is trained: its state, and its forward and backward."""
    items = []
    if not step.cpu_offload:
        state = size.parameters * step.dtype.itemsize / step.student_shards
        items = [
            MemoryItem(Part.WEIGHTS, state),
            MemoryItem(Part.GRADIENTS, state, Moment.TRAINING),
            MemoryItem(Part.MOMENTS, 2 * state),
        ]
    if step.buckets:
        items.append(MemoryItem(Part.BUCKETS, size.parameters * step.dtype.itemsize))
    if step.student == "fsdp":
        items += _sharded_items(size, step)
    if work is not None:
        items.append(MemoryItem(Part.KEPT, work.kept, Moment.TRAINING))
        items.append(MemoryItem(Part.AT_WORK, work.most - work.kept, Moment.BACKWARD))
    return items


def _sharded_items(size: ModelSize, step: StepShape) -> list[MemoryItem]:
    """FSDP gathers what is outside the blocks, and two blocks at a time; a block's whole gradient waits to be shared
    out, in the dtype of the products and in that of the exchange.
    """
    num_gathered = GATHERED_BLOCKS if step.reshard else len(size.blocks)
    gathered = size.outside + sum(sorted(size.blocks)[-num_gathered:])
    exchanged = max(size.blocks) * (step.param_dtype.itemsize + step.reduce_dtype.itemsize)
    return [
        MemoryItem(Part.GATHERED, gathered * step.param_dtype.itemsize, Moment.TRAINING),
        MemoryItem(Part.EXCHANGED, exchanged, Moment.BACKWARD),
    ]


def _teacher_items(pair: PairBytes, step: StepShape) -> list[MemoryItem]:
    """Its blocks may be shared, and are then gathered one after another; embeddings and head stay whole."""
    teacher, itemsize = pair.teacher, step.teacher_dtype.itemsize
    sharded = step.teacher == "sharded"
    weights = teacher.outside + sum(teacher.blocks) / (step.shard_size if sharded else 1)
    gathered = sum(sorted(teacher.blocks)[-GATHERED_BLOCKS:]) * itemsize if sharded else 0
    return [
        MemoryItem(Part.TEACHER_WEIGHTS, weights * itemsize),
        MemoryItem(Part.TEACHER_AT_WORK, (pair.reading or 0) + gathered, Moment.TEACHER),
    ]


def _engine_items(pair: PairBytes, step: StepShape) -> list[MemoryItem]:
    """Of the engine that lives beside the trainer."""
    if step.engine == "server":
        return []
    if step.reserved_bytes:
        return [MemoryItem(Part.ENGINE_RESERVED, step.reserved_bytes)]
    weights = pair.student.parameters * step.engine_dtype.itemsize if step.engine == "copy" else 0
    cache = step.num_sequences * (pair.cache or 0)
    return [MemoryItem(Part.ENGINE_WEIGHTS, weights), MemoryItem(Part.ENGINE_CACHE, cache, Moment.GENERATING)]


def _loss_items(pair: PairBytes, step: StepShape) -> list[MemoryItem]:
    """The head's gradient, added up over chunks until the optimizer gets it; and what a chunk holds."""
    itemsize = step.product_dtype.itemsize
    head = pair.student.head * itemsize
    if step.product_dtype != torch.float32:  # each chunk's share is added up in fp32
        head += pair.student.head * FP32
    rows = step.micro_batch * step.response_tokens, step.micro_batch * step.teacher_response_tokens
    states = rows[0] * pair.student.width * itemsize + rows[1] * pair.teacher.width * step.teacher_dtype.itemsize
    return [
        MemoryItem(Part.HEAD_GRADIENT, head, Moment.TRAINING),
        MemoryItem(Part.LOSS, states + chunk_bytes(pair, step), Moment.LOSS),
    ]


def chunk_bytes(pair: PairBytes, step: StepShape) -> float:
    """Logits of one chunk of both sides, and the temporaries of one strip of it."""
    vocabs = pair.student.vocab, pair.teacher.vocab
    rows = step.micro_batch * step.response_tokens, step.micro_batch * step.teacher_response_tokens
    dtypes = step.product_dtype, step.teacher_dtype
    logits = sum(
        min(step.chunk_tokens, num_rows) * vocab * dtype.itemsize
        for num_rows, vocab, dtype in zip(rows, vocabs, dtypes, strict=True)
    )
    widest = FP32 * max(vocabs)
    strip = min(max(step.strip_bytes, widest), min(step.chunk_tokens, max(rows)) * widest)
    return logits + STRIP_TEMPORARIES * strip
