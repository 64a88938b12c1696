"""Plan: what a recipe's fit would hold and take, by the cost model. No weights are loaded.

In: a DistillModule, the rollouts' sampling, a Layout and Lengths. Out: Plan: the step's shape, memory and seconds.
Memory is that of the longest responses the recipe allows; time that of responses as long as the references.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, Protocol, runtime_checkable

import lightning as L

from simct_pl.errors import RecipeError, UnsupportedModelError
from simct_pl.models.loading import DtypeName, load_config
from simct_pl.models.sharding import Sharding
from simct_pl.planning.cost_inputs import BF16, FP32, HardwareShape, LossShape, StepShape
from simct_pl.planning.cost_model import CostModel, MemoryItem, Phase
from simct_pl.planning.layout import Layout, compute_bytes
from simct_pl.planning.samples import Lengths
from simct_pl.planning.shapes import ModelShape
from simct_pl.rollout.engine import RolloutProvider
from simct_pl.training.module import DistillModule

BYTES: dict[DtypeName, Literal[2, 4]] = {"float32": FP32, "bfloat16": BF16, "float16": BF16}  # type: ignore[dict-item]
IN_HOST_MEMORY = ("student weights", "gradients", "AdamW moments")  # with cpu_offload


@runtime_checkable
class Batched(Protocol):
    """A data module that says how many prompts one rank's optimizer step takes."""

    batch_size: int


class Trained(Protocol):
    """A module that says how its model is trained."""

    sharding: Sharding | None
    micro_batch_tokens: int
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

    step: with the longest responses. shapes: of student and teacher, None for one that the cost model does not count;
    why_no_cost says why there are no predictions then. memory: of one rank. phases: of one step, empty on CPUs.
    response_tokens: of the responses that phases are for.
    """

    layout: Layout
    step: StepShape
    shapes: tuple[ModelShape, ModelShape] | None
    why_no_cost: str
    memory: list[MemoryItem]
    phases: list[Phase]
    response_tokens: int

    @property
    def peak(self) -> float:
        """Bytes of one rank while it generates or trains, whichever is more."""
        return max(
            sum(item.bytes for item in self.memory if item.when in ("always", moment))
            for moment in ("generating", "training")
        )

    @property
    def step_seconds(self) -> float | None:
        """None where nothing is predicted."""
        return sum(phase.seconds for phase in self.phases if not phase.hidden) if self.phases else None

    @property
    def run_seconds(self) -> float | None:
        steps = self.layout.max_steps
        return self.step_seconds * steps if self.step_seconds is not None and steps is not None else None


def make_plan(
    module: DistillModule,
    datamodule: L.LightningDataModule,
    rollouts: RolloutProvider,
    layout: Layout,
    lengths: Lengths,
) -> Plan:
    """Predict a fit.

    Raises:
        RecipeError: if the data module does not say how large its batches are, or settings contradict each other.
        ModelFolderError: if a configuration cannot be read.
    """
    layout.check(module.sharding)
    step = step_shape(module, batch_size_of(datamodule), rollouts, layout, lengths)
    try:
        shapes = tuple(ModelShape.from_config(_config(module, role)) for role in ("student", "teacher"))
    except UnsupportedModelError as error:
        return Plan(layout, step, None, str(error), [], [], step.response_tokens)
    student, teacher = shapes
    loss = LossShape(chunk_tokens=module.chunk_tokens)
    cost = CostModel(student, teacher, step, loss, layout.hardware or HardwareShape())
    memory = _corrected(cost.memory(), module, rollouts, layout, step)
    typical = min(step.response_tokens, math.ceil(lengths.response or step.response_tokens))
    shorter = replace(
        step, response_tokens=typical, teacher_response_tokens=max(round(typical * lengths.teacher_share), 1)
    )
    phases = replace(cost, step=shorter).phases() if layout.hardware is not None else []
    why = "" if phases else "Rates of this CPU are not known, so no time is predicted."
    return Plan(layout, step, (student, teacher), why, memory, phases, typical)


def step_shape(
    module: DistillModule, batch_size: int, rollouts: RolloutProvider, layout: Layout, lengths: Lengths
) -> StepShape:
    """The step with responses of max_tokens."""
    sharding, max_tokens, engine = module.sharding, rollouts.sampling.max_tokens, rollouts.engine.placement
    return replace(
        trained_shape(module, module.student_dtype, batch_size, layout),
        num_samples=rollouts.num_samples,
        prompt_tokens=lengths.longest_prompt,
        response_tokens=max_tokens,
        teacher_response_tokens=max(round(max_tokens * lengths.teacher_share), 1),
        teacher_batch_tokens=module.teacher_batch_tokens,
        teacher="sharded" if sharding is not None and sharding.shard_teacher else "replicated",
        engine="copy" if engine == "student" and sharding is not None else engine,
    )


def trained_shape(module: Trained, dtype: DtypeName, batch_size: int, layout: Layout) -> StepShape:
    """What the trained model alone says of a step; lengths, teacher and engine are still the defaults."""
    sharding, weights = module.sharding, BYTES[dtype]
    return StepShape(
        num_prompts=batch_size * layout.num_ranks,
        micro_batch_tokens=module.micro_batch_tokens,
        checkpointing=module.gradient_checkpointing,
        master_bytes=weights,
        compute_bytes=compute_bytes(layout, sharding, weights),
        optimizer_bytes=2 * weights,
        num_gpus=layout.num_ranks,
        student="fsdp" if sharding is not None else "replicated",
        num_replicas=sharding.replicate if sharding is not None else 1,
    )


def _config(module: DistillModule, role: str):  # type: ignore[no-untyped-def]
    path = module.student_path if role == "student" else module.teacher_path
    return load_config(role, path, role in module.trust_remote_code)


def _corrected(
    items: list[MemoryItem], module: DistillModule, rollouts: RolloutProvider, layout: Layout, step: StepShape
) -> list[MemoryItem]:
    """What this recipe keeps otherwise than the cost model's defaults: dtypes, offloading, vLLM's reservation."""
    held = {item.name: item for item in items}

    def scale(name: str, factor: float) -> None:
        held[name] = replace(held[name], bytes=held[name].bytes * factor)

    scale("teacher weights", BYTES[module.teacher_dtype] / step.compute_bytes)
    if rollouts.engine.placement == "student":  # its copy of a sharded student keeps the student's dtype
        scale("engine weights", step.master_bytes / step.compute_bytes)
    if module.sharding is not None and module.sharding.cpu_offload:
        for name in IN_HOST_MEMORY:
            scale(name, 0.0)
    if rollouts.engine.reserved_share is not None:
        for name in ("engine weights", "engine KV cache"):
            del held[name]
        reserved = rollouts.engine.reserved_share * layout.memory
        held["engine, reserved"] = MemoryItem("engine, reserved", reserved)
    return list(held.values())
