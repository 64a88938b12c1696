"""SFTModule: cross-entropy on reference responses, with the prompt in the model's own chat template and a trained stop.

A batch of prompts with responses comes in; a model folder goes out at the end. The loss is a mean over the response
tokens of the GLOBAL batch, stop included; prompt tokens and a prompt's unsupervised_spans are read, never predicted. As
in DistillModule, one Lightning batch is one optimizer step, and micro-batches are cut inside: neither they nor the
layout change the loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torchmetrics import MeanMetric
from transformers import PreTrainedModel
from typing_extensions import override

from simct_pl.errors import PromptDataError, RecipeError, require_choice
from simct_pl.evaluation.grader import Grader
from simct_pl.files.outputs import check_output
from simct_pl.models.export import export
from simct_pl.models.lm_head import verify_head
from simct_pl.models.loading import DtypeName, check_model_path, context_length, untrained_causal_lm
from simct_pl.models.lora import trained_parameters
from simct_pl.models.packing import Layout, PaddedRows
from simct_pl.models.read_once import ReadOnce
from simct_pl.models.sharding import Sharding, free_gathered
from simct_pl.rollout.engine import SamplingParams
from simct_pl.rollout.hf import HFEngine
from simct_pl.tokenization.model_tokenizer import ModelTokenizer
from simct_pl.tokenization.thinking import CHOICES, Thinking
from simct_pl.tokenization.turns import TURNS, SupervisedTurns
from simct_pl.training.adapted import AdaptedModule
from simct_pl.training.checks import check_precision, check_sharding
from simct_pl.training.collectives import exchange_device, exchange_gradients, gather_scalars, pad_to_max_over_ranks
from simct_pl.training.optim import GuardedStep, OptimizerConfig
from simct_pl.types import Prompt, PromptBatch
from simct_pl.warmup.examples import examples_of
from simct_pl.warmup.supervised import Example, SupervisedModel

GUARD = "guarded_step"  # of our part in a checkpoint


class SFTModule(AdaptedModule):
    """A causal language model that learns to write given responses.

    Args:
        model: a model folder or hub name.
        output: folder that the trained model is exported to when the fit ends; null exports nothing.
        from_scratch: initialise the weights instead of loading them; the folder then needs no weights.
        init_seed: of that initialisation.
        label_smoothing: share of each target spread over the vocabulary; so much of what the model samples is noise.
        optimizer: learning rate, schedule, clipping.
        grader: scores greedy held-out responses; without one, validation reports the loss and bits per byte only.
        max_response_tokens: at which a held-out response is cut.
        dtype: of the weights (autocast is the trainer's `precision`).
        layout: padded rows, or one packed row a forward.
        micro_batch_tokens: positions of one forward and backward. It changes speed and memory, never the loss.
        chunk_tokens: rows of logits that exist at a time.
        gradient_checkpointing: recompute the layers in backward.
        sharding: how ranks share weights, gradients and moments (FSDP2); null: each has them all.
        template: arguments of the model's chat template.
        thinking: a response's <think> … </think> is "supervised", "skipped" (read, not predicted) or "left_out".
        supervised_turns: of a conversation, the "last" answer is learned, or "all" turns of the assistant's.
        lora, adapter: see DistillModule and callbacks.HFExport.
    """

    def __init__(
        self,
        model: str,
        output: str | None = None,
        from_scratch: bool = False,
        init_seed: int = 0,
        label_smoothing: float = 0.0,
        optimizer: OptimizerConfig = OptimizerConfig(lr=2e-6),  # noqa: B008 - frozen
        grader: Grader | None = None,
        max_response_tokens: int = 64,
        dtype: DtypeName = "float32",
        layout: Layout | None = None,
        micro_batch_tokens: int = 16_384,
        chunk_tokens: int = 1024,
        gradient_checkpointing: bool = False,
        sharding: Sharding | None = None,
        template: dict[str, Any] | None = None,
        thinking: Thinking = "supervised",
        supervised_turns: SupervisedTurns = "last",
        lora: dict[str, Any] | None = None,
        adapter: bool = False,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        require_choice("thinking", thinking, CHOICES)
        require_choice("supervised_turns", supervised_turns, TURNS)
        if not 0 <= label_smoothing < 1:
            raise RecipeError(f"label_smoothing is {label_smoothing}; expected a share in [0, 1).")
        self.model_path, self.output = self.use_lora("model", model, lora), output
        self.adapter = self.check_adapter(adapter, "SFTModule", from_scratch)
        self.from_scratch, self.init_seed, self.label_smoothing = from_scratch, init_seed, label_smoothing
        self.template, self.thinking, self.supervised_turns = template, thinking, supervised_turns
        self.grader, self.max_response_tokens, self.layout = grader, max_response_tokens, layout or PaddedRows()
        self.dtype_name: DtypeName = dtype
        self.micro_batch_tokens, self.chunk_tokens = micro_batch_tokens, chunk_tokens
        self.optimizer_config, self.gradient_checkpointing, self.sharding = optimizer, gradient_checkpointing, sharding
        self.guarded_step, self.engine = GuardedStep(optimizer.max_grad_norm), HFEngine()
        self.supervised: SupervisedModel | None = None
        self.means = torch.nn.ModuleDict({name: MeanMetric() for name in ("loss", "bits_per_byte", "accuracy")})
        self._held_out: list[Prompt] = []

    @cached_property
    def tokenizer(self) -> ModelTokenizer:
        return ModelTokenizer.from_pretrained(self.tokenizer_of(self.model_path), self.template)

    @property
    def model(self) -> PreTrainedModel:
        """The model, once configure_model has made it."""
        assert self.supervised is not None
        return self.supervised.model

    @cached_property
    def context(self) -> int | None:
        """Longest prompt + response, in tokens."""
        return context_length("model", self.model_path)

    @override
    def setup(self, stage: str) -> None:
        if self._trainer is not None:
            check_precision(self._trainer)
            check_sharding(self._trainer, self.sharding)
        check_model_path("model", self.model_path, needs_weights=not self.from_scratch)
        self.check_lora(self.dtype_name)
        _ = self.context, self.tokenizer  # reads the configuration, the template and its arguments
        if stage == "fit" and (datamodule := getattr(self._trainer, "datamodule", None)) is not None:
            for batch in islice(datamodule.train_dataloader(), 1):  # a template may refuse its messages
                self.examples(batch.prompts)
        if self.output is not None:
            sources = self.model_path, self.recipes_name_of(self.model_path)
            check_output(Path(self.output), () if self.from_scratch else sources)

    @override
    def configure_model(self) -> None:
        if self.supervised is not None:
            return
        if self.from_scratch:  # small, and the same on every rank
            read = ReadOnce(untrained_causal_lm("model", self.model_path, self.dtype_name, self.init_seed), None)
            self._verify(read.model)
        else:
            read = ReadOnce.load("model", self.model_path, self.dtype_name, check=self._verify, lora=self.lora)
        model = self.prepare_student(read.model, self.gradient_checkpointing)
        self.supervised = SupervisedModel(model, self.layout, self.chunk_tokens, self.label_smoothing)
        if self.sharding is not None:
            assert self.device_mesh is not None
            self.sharding.shard_student(self.supervised, model, self.sharding.mesh(self.device_mesh["data_parallel"]))
        read.fill(exchange_device(self))

    def _verify(self, model: PreTrainedModel) -> None:
        verify_head(model)
        self.layout.verify(model)

    @override
    def configure_optimizers(self) -> OptimizerLRScheduler:
        num_steps = self.trainer.estimated_stepping_batches
        optimizer, scheduler = self.optimizer_config.build(trained_parameters(self.model), num_steps)
        return [optimizer], [scheduler]

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint[GUARD] = self.guarded_step.state_dict()

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.guarded_step.load_state_dict(checkpoint[GUARD])

    # ---- the step ----

    @override
    def training_step(self, batch: PromptBatch, batch_idx: int) -> None:
        examples = self.examples(batch.prompts)
        # The divisor is of all ranks' batches and known before any backward, so the cut into micro-batches cannot
        # matter.
        num_global_tokens = int(gather_scalars(self, _num_targets(examples)).sum())
        parts = pad_to_max_over_ranks(self, self.micro_batches(examples), idle=[])
        loss_sum = torch.zeros((), dtype=torch.float64, device=self.device)
        # Backward at once after each forward: one graph exists at a time. DDP exchanges in the last one alone.
        for number, part in enumerate(parts, start=1):
            assert self.supervised is not None
            loss = self.supervised(part)
            with exchange_gradients(self.trainer, now=number == len(parts)):
                # DDP and FSDP average gradients over ranks; the loss is a sum over the global batch.
                self.manual_backward(loss * (self.trainer.world_size / num_global_tokens))
            loss_sum += loss.detach()
        metrics = self.guarded_step(self.model.parameters(), self.optimizers(), self.lr_schedulers())  # type: ignore[arg-type]
        loss_mean = gather_scalars(self, loss_sum.item()).sum() / num_global_tokens
        self.log("loss/train", loss_mean, prog_bar=True, batch_size=len(batch))
        self.log_dict(metrics, batch_size=1)

    def loss(self, prompts: list[Prompt]) -> Tensor:
        """Mean cross-entropy a response token, in nats.

        Raises:
            PromptDataError: naming a prompt that has no response.
        """
        assert self.supervised is not None
        examples = self.examples(prompts)
        sums = [self.supervised(part) for part in self.micro_batches(examples)]
        return torch.stack(sums).sum() / _num_targets(examples)

    def micro_batches(self, examples: Sequence[Example]) -> list[list[Example]]:
        """The examples of each forward."""
        lengths = [len(example.prompt_ids) + len(example.response_ids) for example in examples]
        return [[examples[i] for i in members] for members in self.layout.groups(lengths, self.micro_batch_tokens)]

    def examples(self, prompts: Sequence[Prompt]) -> list[Example]:
        """Prompts in the model's own template, with what is learned of them and the stops; see examples_of.

        Raises:
            PromptDataError: naming a prompt that has no response, or is too long for the model with it.
        """
        examples = examples_of(prompts, self.tokenizer, self.thinking, self.supervised_turns)
        for prompt, example in zip(prompts, examples, strict=True):
            length = len(example.prompt_ids) + len(example.response_ids)
            if self.context is not None and length > self.context:
                raise PromptDataError(
                    f"Prompt {prompt.index} has {length} tokens with its response; the model's context is "
                    f"{self.context}. Leave long ones out: the filter LengthBetween of `select`, or max_prompt_chars."
                )
        return examples

    # ---- held-out prompts ----

    @override
    def on_validation_start(self) -> None:
        if self.grader is not None:
            self.engine.refresh(self.model, self.global_step)  # collective where ranks share the model

    @override
    def validation_step(self, batch: PromptBatch, batch_idx: int) -> None:
        """Grade greedy responses. The loss waits for the epoch's end: ranks may have unequal shares of the prompts."""
        self._held_out += batch.prompts
        if self.grader is not None:
            for prompt, response in zip(batch.prompts, self.respond(batch.prompts), strict=True):
                self._mean("accuracy").update(self.grader(prompt, response))

    @override
    def on_validation_epoch_end(self) -> None:
        assert self.supervised is not None
        with torch.no_grad(), self.trainer.precision_plugin.val_step_context():
            for part in pad_to_max_over_ranks(self, self.micro_batches(self.examples(self._held_out)), idle=[]):
                # Weighted by tokens, or bytes, so that means over parts and ranks are means over all of them.
                loss = float(self.supervised(part)) / max(_num_targets(part), 1)
                bits = self.supervised.bits([example.reference for example in part])
                num_bytes = sum(len(self.tokenizer.table.join(e.reference.response_ids)) for e in part)
                self._mean("loss").update(loss, weight=_num_targets(part))
                self._mean("bits_per_byte").update(bits / max(num_bytes, 1), weight=num_bytes)
        free_gathered(self.supervised)
        self._held_out = []
        names = [name for name in self.means if name != "accuracy" or self.grader is not None]
        self.log_dict({f"eval/{name}": self._mean(name).compute() for name in names}, prog_bar=True)
        with torch.inference_mode(False):  # `validate` has it on, and a fit that follows does not
            for name in names:
                self._mean(name).reset()

    def respond(self, prompts: list[Prompt]) -> list[str]:
        """Greedy responses as text, without the stop; what hits the length limit stays cut."""
        if self.engine.policy_version is None:
            self.engine.refresh(self.model, self.global_step)
        generations = self.engine.generate(
            [self.tokenizer.render(prompt) for prompt in prompts],
            seeds=[0] * len(prompts),  # greedy draws nothing
            sampling=SamplingParams(temperature=0.0, max_tokens=self.max_response_tokens),
            stop_ids=self.tokenizer.stop_ids,
        )
        return [self.tokenizer.response_text(generation.response_ids) for generation in generations]

    def _mean(self, name: str) -> MeanMetric:
        mean = self.means[name]
        assert isinstance(mean, MeanMetric)
        return mean

    @override
    def on_fit_end(self) -> None:
        if self.output is not None:
            where = Path(self.output), self.tokenizer_of(self.model_path)
            export(self.model, self.tokenizer.hf, *where, self.adapter, self.trainer.is_global_zero)


def _num_targets(examples: Sequence[Example]) -> int:
    return sum(example.num_targets for example in examples)
