"""The plan of supervised fine-tuning, as `fit --dry_run` prints it. No weights load.

In: an SFTModule, its data module, a Deployment. Out: a Plan, and its sections. The step is the module's own, rehearsed
on a micro-batch of the longest examples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice

import lightning as L
from torch import Tensor
from transformers import PreTrainedModel

from simct_pl.models.loading import check_model_path, load_config
from simct_pl.models.lora import trained_parameters
from simct_pl.planning.deployment import Deployment
from simct_pl.planning.memory import counted_items, items_beside, rehearsed_items
from simct_pl.planning.plan import Plan, batch_size_of, check_shardable, told, trained_shape
from simct_pl.planning.rehearsing import HOST, training_of
from simct_pl.planning.section import Section
from simct_pl.planning.words import memory_section, parameters_of
from simct_pl.rehearsal.models import ModelSource, size_of
from simct_pl.rehearsal.training import Stage, Started, WithLoss, rehearse
from simct_pl.warmup.sft import SFTModule
from simct_pl.warmup.supervised import Example, SupervisedModel


@dataclass(frozen=True)
class ExampleLengths:
    """Tokens of some examples: the longest prompt and response, stops included, and the mean response."""

    prompt: int
    response: int
    mean_response: float

    @classmethod
    def of(cls, examples: Sequence[Example]) -> ExampleLengths:
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
    module: SFTModule,
    datamodule: L.LightningDataModule,
    deployment: Deployment,
    lengths: ExampleLengths,
    started: Started = lambda _: None,
) -> Plan:
    """Rehearse a step of the longest examples. started: told the name of each phase as it begins.

    Raises:
        RecipeError: if the data module does not say how large its batches are, or settings contradict each other.
        MissingFileError, ModelFolderError: if the model cannot be what the recipe says.
        UnsupportedModelError: if it cannot be built, or not be sharded where the recipe shards it.
    """
    deployment.check(module.sharding)
    if not module.from_scratch:
        check_model_path("model", module.model_path)
    step = replace(
        trained_shape(module, module.dtype_name, batch_size_of(datamodule), deployment),
        prompt_tokens=lengths.prompt,
        response_tokens=lengths.response,
        engine="server",
    )
    source = ModelSource(load_config("model", module.model_path))
    size = size_of(source, module.lora)
    if module.sharding is not None:
        check_shardable([size])
    examples = [Example([0] * lengths.prompt, [0] * lengths.response, [0] * lengths.response)] * step.micro_batch

    def with_loss(model: PreTrainedModel, stage: Stage) -> WithLoss:
        whole = SupervisedModel(model, module.layout, module.chunk_tokens, module.label_smoothing)

        def forward() -> Tensor:
            with stage.phases("student_forward"):
                loss: Tensor = whole(examples)
            return loss

        return WithLoss(whole, forward, lambda: [{"params": trained_parameters(whole)}])

    why_not: list[str] = []
    training = training_of(source, step, module.sharding, module.optimizer_config, module.lora)
    ledger = told(lambda: rehearse(training, with_loss, HOST, started), why_not)
    memory = counted_items({"model": size}, step) if ledger is None else rehearsed_items(ledger, step)
    return Plan(deployment, step, {"model": size}, memory + items_beside(size, 0, step), tuple(why_not))


def supervised_sections(module: SFTModule, plan: Plan, lengths: ExampleLengths) -> list[Section]:
    """Everything that a dry run prints."""
    step, optimizer, steps = plan.step, module.optimizer_config, plan.deployment.max_steps
    kind = load_config("model", module.model_path).get_text_config().model_type
    responses = f"responses up to {lengths.response}, {lengths.mean_response:.0f} on average"
    rows = [
        ("model", module.recipes_name_of(module.model_path) + (", from random weights" if module.from_scratch else "")),
        ("architecture", f"{kind}, parameters: {parameters_of(plan.sizes['model'])}"),
        ("output", module.output or "none: the weights are in checkpoints only"),
        ("layout", plan.deployment.words),
        ("weights in", module.dtype_name + ("" if module.sharding is None else f", shared by {step.shard_size} ranks")),
        ("examples", f"{step.num_prompts} a step, {step.num_sequences} on each rank, {type(module.layout).__name__}"),
        ("learned", "the last answer" if module.supervised_turns == "last" else "every turn of the assistant's"),
        ("tokens", f"prompts up to {lengths.prompt}, {responses}"),
        ("micro-batches", f"{step.num_micro_batches} of {step.micro_batch} on each rank, at the longest"),
        ("AdamW", f"lr {optimizer.lr:g}, betas {optimizer.betas}, warm-up {optimizer.warmup_ratio:.0%}"),
        ("optimizer steps", str(steps) if steps else "not set (trainer.max_steps)"),
    ]
    return [Section("Supervised fine-tuning", ("", "value"), rows), memory_section(plan)]
