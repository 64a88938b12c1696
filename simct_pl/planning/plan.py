"""Plan: what a recipe's fit would hold. No weights are loaded.

In: a DistillModule, the rollouts' sampling, a Deployment and Lengths. Out: Plan: the step with the longest responses
that the recipe allows, and the memory of one rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Literal, Protocol, TypeVar, runtime_checkable

import lightning as L
import torch

from simct_pl.errors import RecipeError, UnsupportedModelError
from simct_pl.models.load_arguments import bits_a_weight
from simct_pl.models.loading import DtypeName, torch_dtype
from simct_pl.models.sharding import Sharding
from simct_pl.planning.deployment import Deployment
from simct_pl.planning.memory import MemoryItem, counted_items, items_beside, packed, peak_bytes, rehearsed_items
from simct_pl.planning.rehearsing import rehearse_recipe, student_source
from simct_pl.planning.samples import Lengths
from simct_pl.planning.step import StepShape
from simct_pl.planning.teachers import PlannedTeachers
from simct_pl.rehearsal.models import ModelSize, cache_bytes, size_of
from simct_pl.rehearsal.training import Started
from simct_pl.rollout.engine import RolloutProvider
from simct_pl.training.chunked_loss import CPU_STRIP_BYTES, GPU_STRIP_BYTES
from simct_pl.training.module import DistillModule

Measured = TypeVar("Measured")


@runtime_checkable
class Batched(Protocol):
    """A data module that says how many prompts one rank's optimizer step takes."""

    batch_size: int


class Trained(Protocol):
    """A module that says how its model is trained."""

    sharding: Sharding | None
    micro_batch_tokens: int
    chunk_tokens: int
    gradient_checkpointing: bool


def batch_size_of(datamodule: L.LightningDataModule) -> int:
    """Prompts that one rank's optimizer step takes.

    Raises:
        RecipeError: if the data module does not say.
    """
    if not isinstance(datamodule, Batched):
        raise RecipeError(f"{type(datamodule).__name__} has no batch_size, so that no step of it can be planned.")
    return datamodule.batch_size


@dataclass(frozen=True)
class Plan:
    """One fit, on paper.

    step: with the longest responses. sizes: of "student" and the teachers, by their names. memory: of one rank.
    why_not: reasons for what is missing in it.
    """

    deployment: Deployment
    step: StepShape
    sizes: dict[str, ModelSize]
    memory: list[MemoryItem]
    why_not: tuple[str, ...] = ()

    @property
    def peak(self) -> float:
        """Bytes of one rank while it generates or trains, whichever is more."""
        return peak_bytes(self.memory)


def make_plan(
    module: DistillModule,
    datamodule: L.LightningDataModule,
    rollouts: RolloutProvider,
    deployment: Deployment,
    lengths: Lengths,
    started: Started = lambda _: None,
) -> Plan:
    """Rehearse the recipe's step, and add what lives beside it.

    started: told the name of each phase as it begins.

    Raises:
        RecipeError: if the data module does not say how large its batches are, or settings contradict each other.
        ModelFolderError: if a configuration cannot be read.
        UnsupportedModelError: if a model cannot be built, or not be sharded where the recipe shards it.
    """
    deployment.check(module.sharding)
    step = step_shape(module, batch_size_of(datamodule), rollouts, deployment, lengths)
    student, teachers = size_of(student_source(module), module.lora), PlannedTeachers.of(module)
    if module.sharding is not None:
        check_shardable([student, *teachers.here] if step.teacher == "sharded" else [student])
    why_not: list[str] = []
    largest = teachers.largest
    step, size = replace(step, teacher_dtype=torch_dtype(largest.dtype)), teachers.sizes[largest.name]
    ledger = told(lambda: rehearse_recipe(module, largest, step, lengths, started), why_not)
    rehearsed = {"student": student, "teacher": size}
    memory = counted_items(rehearsed, step) if ledger is None else rehearsed_items(ledger, step)
    memory = packed(memory, size, step, bits_a_weight(largest.load_arguments)) + teachers.items_beside(module, step)
    started("engine")
    cache = 0
    if step.engine != "server" and not step.reserved_bytes:
        found = told(lambda: cache_bytes(student_source(module), step.engine_dtype, step.student_length), why_not)
        cache = found or 0
    memory += items_beside(student, cache, step)
    return Plan(deployment, step, {"student": student, **teachers.sizes}, memory, tuple(why_not))


def told(measure: Callable[[], Measured], why_not: list[str]) -> Measured | None:
    """The measure, or None and a reason more."""
    try:
        return measure()
    except UnsupportedModelError as error:
        why_not.append(str(error))
        return None


def check_shardable(sizes: Iterable[ModelSize]) -> None:
    """Refuse what FSDP2 would: a model that does not name its blocks.

    Raises:
        UnsupportedModelError: if it does not.
    """
    if not all(size.blocks for size in sizes):
        raise UnsupportedModelError(
            "A model that the recipe shards does not say which of its modules are decoder blocks (_no_split_modules). "
            "Leave `sharding` out and use trainer.strategy=ddp."
        )


def step_shape(
    module: DistillModule, batch_size: int, rollouts: RolloutProvider, deployment: Deployment, lengths: Lengths
) -> StepShape:
    """The step with responses of max_tokens."""
    sharding, max_tokens, engine = module.sharding, rollouts.sampling.max_tokens, rollouts.engine
    step = trained_shape(module, module.student_dtype, batch_size, deployment)
    # HFEngine generates with the student itself, or with a whole copy of a sharded one: in the student's own dtype.
    generates = engine.placement == "student"
    return replace(
        step,
        num_samples=rollouts.num_samples,
        prompt_tokens=lengths.longest_prompt,
        response_tokens=max_tokens,
        teacher_response_tokens=max(round(max_tokens * lengths.teacher_share), 1),
        teacher_batch_tokens=module.teacher_batch_tokens,
        teacher_dtype=torch_dtype(module.teacher_dtype),
        teacher=_place_of_teacher(module),
        anchor=module.anchor_weight > 0 and not module.start_is_inside,
        engine="copy" if generates and sharding is not None else engine.placement,
        engine_dtype=step.dtype if generates else step.product_dtype,
        reserved_bytes=(engine.reserved_share or 0.0) * deployment.memory,
    )


def _place_of_teacher(module: DistillModule) -> Literal["replicated", "sharded", "server"]:
    if all(lesson.server is not None for lesson in module.lessons.values()):
        return "server"
    return "sharded" if module.sharding is not None and module.sharding.shard_teacher else "replicated"


def trained_shape(module: Trained, dtype: DtypeName, batch_size: int, deployment: Deployment) -> StepShape:
    """What the trained model alone says of a step; lengths, teacher and engine are still the defaults."""
    sharding = module.sharding
    weights = torch.bfloat16 if deployment.precision == "bf16-true" else torch_dtype(dtype)
    step = StepShape(
        num_prompts=batch_size * deployment.num_ranks,
        micro_batch_tokens=module.micro_batch_tokens,
        chunk_tokens=module.chunk_tokens,
        strip_bytes=GPU_STRIP_BYTES if deployment.gpu else CPU_STRIP_BYTES,
        checkpointing=module.gradient_checkpointing,
        dtype=weights,
        param_dtype=weights,
        autocast=deployment.precision in ("bf16-mixed", "bf16"),
        num_gpus=deployment.num_ranks,
        student="replicated" if sharding is None else "fsdp",
        buckets=deployment.buckets,
    )
    if sharding is None:
        return step
    return replace(
        step,
        param_dtype=torch_dtype(sharding.param_dtype) if sharding.param_dtype else weights,
        num_replicas=sharding.replicate,
        reduce_dtype=torch_dtype(sharding.reduce_dtype),
        reshard=sharding.reshard_after_forward,
        cpu_offload=sharding.cpu_offload,
    )
