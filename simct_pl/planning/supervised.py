"""`fit --dry_run` of supervised fine-tuning: everything looked up and checked, and what a rank would hold and take.

In: an SFTModule, its data module, a Layout. Out: a Plan, and its sections. No weights load. The cost model counts a
student and a teacher; here the model is both of them, and only what training the student takes is kept.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import islice

import lightning as L

from simct_pl.errors import UnsupportedModelError
from simct_pl.models.bits_per_byte import Reference
from simct_pl.models.loading import check_model_path, load_config
from simct_pl.planning.cost_inputs import FP32, HardwareShape
from simct_pl.planning.cost_model import CostModel, MemoryItem
from simct_pl.planning.layout import Layout
from simct_pl.planning.plan import IN_HOST_MEMORY, Plan, batch_size_of, trained_shape
from simct_pl.planning.section import Section
from simct_pl.planning.shapes import ModelShape
from simct_pl.planning.words import memory_section, number_of, time_section
from simct_pl.warmup.sft import SFTModule

HELD = (*IN_HOST_MEMORY, "student weights for products", "student activations")
PHASES = ("student forward", "student backward", "loss: heads", "sync (at worst, not hidden)", "optimizer")


@dataclass(frozen=True)
class ExampleLengths:
    """Tokens of some examples: the longest prompt and response, stops included, and the mean response."""

    prompt: int
    response: int
    mean_response: float

    @classmethod
    def of(cls, examples: list[Reference]) -> ExampleLengths:
        responses = [len(example.response_ids) for example in examples]
        prompt = max(len(example.prompt_ids) for example in examples)
        return cls(prompt, max(responses), sum(responses) / len(responses))


def read_lengths(module: SFTModule, datamodule: L.LightningDataModule, num: int) -> ExampleLengths:
    """Of the first examples that a fit would train on.

    Raises:
        PromptDataError: if there is none, or one has no response, or does not fit into the model's context.
    """
    datamodule.setup("fit")
    prompts = (prompt for batch in datamodule.train_dataloader() for prompt in batch.prompts)
    return ExampleLengths.of(module.examples(list(islice(prompts, num))))


def plan_supervised(
    module: SFTModule, datamodule: L.LightningDataModule, layout: Layout, lengths: ExampleLengths
) -> Plan:
    """Predict a fit: memory with the longest examples, time with the mean one.

    Raises:
        RecipeError: if the data module does not say how large its batches are, or settings contradict each other.
        MissingFileError, ModelFolderError: if the model cannot be what the recipe says.
    """
    layout.check(module.sharding)
    if not module.from_scratch:
        check_model_path("model", module.model_path)
    step = replace(
        trained_shape(module, module.dtype_name, batch_size_of(datamodule), layout),
        prompt_tokens=lengths.prompt,
        response_tokens=lengths.response,
        teacher_response_tokens=1,  # as little as the cost model allows
        teacher_batch_tokens=1,
        engine="server",
    )
    try:
        shape = ModelShape.from_config(load_config("model", module.model_path))
    except UnsupportedModelError as error:
        return Plan(layout, step, None, str(error), [], [], lengths.response)
    cost = CostModel(shape, shape, step, hardware=layout.hardware or HardwareShape())
    typical = math.ceil(lengths.mean_response)
    phases = replace(cost, step=replace(step, response_tokens=typical)).phases() if layout.hardware else []
    why = "" if phases else "Rates of this CPU are not known, so no time is predicted."
    kept = [phase for phase in phases if phase.name in PHASES]
    return Plan(layout, step, (shape, shape), why, _memory(module, cost), kept, typical)


def supervised_sections(module: SFTModule, plan: Plan, lengths: ExampleLengths) -> list[Section]:
    """Everything that a dry run prints."""
    step, optimizer, steps = plan.step, module.optimizer_config, plan.layout.max_steps
    kind = load_config("model", module.model_path).get_text_config().model_type
    parameters = number_of(plan.shapes[0].parameters) if plan.shapes else "not counted"
    responses = f"responses up to {lengths.response}, {lengths.mean_response:.0f} on average"
    rows = [
        ("model", module.model_path + (", from random weights" if module.from_scratch else "")),
        ("architecture", f"{kind}, parameters: {parameters}"),
        ("output", module.output or "none: the weights are in checkpoints only"),
        ("layout", plan.layout.words),
        ("weights in", module.dtype_name + ("" if module.sharding is None else f", shared by {step.shard_size} ranks")),
        ("examples", f"{step.num_prompts} a step, {step.num_sequences} on each rank, {type(module.layout).__name__}"),
        ("tokens", f"prompts up to {lengths.prompt}, {responses}"),
        ("micro-batches", f"{step.num_micro_batches} of {step.micro_batch} on each rank, at the longest"),
        ("AdamW", f"lr {optimizer.lr:g}, betas {optimizer.betas}, warm-up {optimizer.warmup_ratio:.0%}"),
        ("optimizer steps", str(steps) if steps else "not set (trainer.max_steps)"),
    ]
    return [Section("Supervised fine-tuning", ("", "value"), rows), memory_section(plan), time_section(plan)]


def _memory(module: SFTModule, cost: CostModel) -> list[MemoryItem]:
    """Of one rank. A chunk's logits and their gradient are in the products' dtype, log-softmax and its gradient in fp32
    (simct_pl/models/cross_entropy.py).
    """
    step, shape = cost.step, cost.student
    offloaded = IN_HOST_MEMORY if module.sharding is not None and module.sharding.cpu_offload else ()
    kept = [*HELD, "one layer, recomputed or teacher's"] if step.checkpointing else HELD
    items = [
        replace(item, name=item.name.removeprefix("student ").replace(" or teacher's", ""))
        for item in cost.memory()
        if item.name in kept and item.name not in offloaded
    ]
    rows = min(module.chunk_tokens, step.micro_batch * step.response_tokens)
    return [*items, MemoryItem("logits of a chunk", rows * shape.vocab * 2 * (step.compute_bytes + FP32), "training")]
