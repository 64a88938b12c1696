"""The recipe's own step, rehearsed: its models, its objective, and responses made of its own texts.

In: a module, a StepShape and Lengths. Out: the Ledger of one micro-batch of the longest responses on one rank. Sizes
are those of PyTorch's CPU operators, with strips as a GPU gets them; what a kernel allocates for itself, and what an
allocator keeps, is not among them.
"""

from __future__ import annotations

from dataclasses import replace

from simct_pl.losses.inputs.vocab_tables import PairTables
from simct_pl.models.loading import load_config
from simct_pl.models.lora import Lora
from simct_pl.models.sharding import Sharding
from simct_pl.planning.samples import Lengths
from simct_pl.planning.step import StepShape
from simct_pl.rehearsal.ledger import Ledger
from simct_pl.rehearsal.models import ModelSource
from simct_pl.rehearsal.pair import Distillation, MicroBatch, rehearse_distillation
from simct_pl.rehearsal.training import Started, Training
from simct_pl.training.aligned_batch import AlignedBatch
from simct_pl.training.chunked_loss import CPU_STRIP_BYTES
from simct_pl.training.lesson import Lesson
from simct_pl.training.module import DistillModule
from simct_pl.training.optim import OptimizerConfig
from simct_pl.types import Prompt, Rollout

HOST = "cpu"


def student_source(module: DistillModule) -> ModelSource:
    """What the student is built from."""
    trusted = "student" in module.trust_remote_code
    return ModelSource(load_config("student", module.student_path, trusted), trusted)


def teacher_source(lesson: Lesson) -> ModelSource:
    """What a teacher is built from."""
    return ModelSource(load_config("teacher", lesson.path, lesson.trusted), lesson.trusted)


def training_of(
    source: ModelSource,
    step: StepShape,
    sharding: Sharding | None,
    optimizer: OptimizerConfig,
    lora: Lora | None = None,
) -> Training:
    """How one rank trains a model. What would lie in host memory is rehearsed on the device, and not planned there."""
    return Training(
        source,
        dtype=step.dtype,
        autocast=step.autocast,
        gradient_checkpointing=step.checkpointing,
        sharding=None if sharding is None else replace(sharding, cpu_offload=False),
        num_ranks=step.num_gpus,
        keeps_gradients=step.num_micro_batches > 1,
        optimizer=optimizer,
        lora=lora,
    )


def rehearse_recipe(
    module: DistillModule, lesson: Lesson, step: StepShape, lengths: Lengths, started: Started
) -> Ledger:
    """See rehearsal.training.rehearse; with one teacher, as if it graded everything.

    Raises:
        UnsupportedModelError: if a model cannot be built, sharded or followed.
    """
    distillation = Distillation(
        teacher_source(lesson),
        lesson.objective,
        micro_batch(module, lesson, step, lengths),
        lesson.pair,
        step.teacher_dtype,
        step.chunk_tokens,
        step.teacher_batch_tokens,
        strip_bytes=None if step.strip_bytes == CPU_STRIP_BYTES else step.strip_bytes,
    )
    training = training_of(student_source(module), step, module.sharding, module.optimizer_config, module.lora)
    return rehearse_distillation(training, distillation, HOST, started)


def micro_batch(module: DistillModule, lesson: Lesson, step: StepShape, lengths: Lengths) -> MicroBatch:
    """Of responses that are all as long as the step allows, and say what the recipe's texts say, over and over."""
    lesson.objective.prepare(lesson.pair)
    text_ids = [token for text in lengths.texts for token in lesson.pair.student.encode(text)]
    response_ids = (text_ids * (step.response_tokens // len(text_ids) + 1))[: step.response_tokens]
    prompt = Prompt(0, ({"role": "user", "content": lengths.texts[0]},))
    logprobs = [0.0] * len(response_ids)
    rollout = Rollout(prompt, 0, [0] * step.prompt_tokens, response_ids, logprobs, "length", 0, 0)
    rollouts = [rollout] * step.micro_batch
    aligned = AlignedBatch.of(rollouts, lesson.pair, module.aligner, lesson.context, lesson.objective)
    aligned = replace(aligned, teacher_prompt_ids=[[0] * step.prompt_tokens] * step.micro_batch)
    return MicroBatch(rollouts, aligned, PairTables.build(lesson.pair.shared_vocab))
