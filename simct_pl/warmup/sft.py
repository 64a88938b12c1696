"""SFTModule: cross-entropy on reference responses, with the prompt in the model's own chat template and a trained stop.

A batch of prompts with responses comes in; a model folder goes out at the end. The loss is a mean over the response
tokens of the batch, stop included; prompt tokens are read, never predicted.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.nn import functional as F
from torch.optim import Optimizer
from torchmetrics import MeanMetric
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel
from typing_extensions import override

from simct_pl.errors import PromptDataError, RecipeError
from simct_pl.evaluation.grader import Grader
from simct_pl.export import export_model
from simct_pl.models import DtypeName, check_model_path, load_causal_lm, load_config, torch_dtype
from simct_pl.optim import OptimizerConfig
from simct_pl.rollout.engine import SamplingParams
from simct_pl.rollout.hf import HFEngine
from simct_pl.scoring.heads import LMHead, response_states, verify_head
from simct_pl.tokenization.pair import ModelTokenizer
from simct_pl.types import Prompt, PromptBatch


class SFTModule(L.LightningModule):
    """A causal language model that learns to write given responses.

    Args:
        model: a model folder or hub name.
        output: folder that the trained model is exported to when the fit ends; null exports nothing.
        from_scratch: initialise the weights instead of loading them; the folder then needs no weights.
        init_seed: of that initialisation.
        label_smoothing: share of each target spread over the vocabulary; a teacher trained with some stays calm in
            contexts that only a student would write.
        optimizer: learning rate, schedule, clipping.
        grader: scores greedy held-out responses; without one, validation reports the loss only.
        max_response_tokens: at which a held-out response is cut.
        dtype: of the weights (autocast is the trainer's `precision`).
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
    ) -> None:
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise RecipeError(f"label_smoothing is {label_smoothing}; expected a share in [0, 1).")
        self.model_path, self.output = model, output
        self.from_scratch, self.init_seed = from_scratch, init_seed
        self.label_smoothing, self.optimizer_config = label_smoothing, optimizer
        self.grader, self.max_response_tokens = grader, max_response_tokens
        self.dtype_name: DtypeName = dtype
        self.model: PreTrainedModel | None = None
        self.accuracy = MeanMetric()

    @cached_property
    def tokenizer(self) -> ModelTokenizer:
        return ModelTokenizer.from_pretrained(self.model_path)

    @override
    def setup(self, stage: str) -> None:
        if not self.from_scratch:
            check_model_path("model", self.model_path)
        load_config("model", self.model_path)

    @override
    def configure_model(self) -> None:
        if self.model is not None:
            return
        if self.from_scratch:
            self.model = _untrained(self.model_path, self.dtype_name, self.init_seed)
        else:
            self.model = load_causal_lm("model", self.model_path, self.dtype_name)
        verify_head(self.model)

    @override
    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer, scheduler = self.optimizer_config.build(self.parameters(), self.trainer.estimated_stepping_batches)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    @override
    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        self.clip_gradients(optimizer, self.optimizer_config.max_grad_norm, "norm")

    @override
    def training_step(self, batch: PromptBatch, batch_idx: int) -> Tensor:
        loss = self.loss(batch.prompts)
        self.log("loss/train", loss, prog_bar=True, batch_size=len(batch))
        return loss

    def loss(self, prompts: list[Prompt]) -> Tensor:
        """Mean cross-entropy a response token, in nats.

        Raises:
            PromptDataError: naming a prompt that has no response.
        """
        assert self.model is not None
        prompt_ids = [self.tokenizer.render_prompt(prompt.messages) for prompt in prompts]
        response_ids = [self.response_ids(prompt) for prompt in prompts]
        hidden_NH = response_states(self.model, prompt_ids, response_ids).hidden_NH
        targets_N = torch.tensor([token for ids in response_ids for token in ids], device=hidden_NH.device)
        logits_NK = LMHead.of(self.model)(hidden_NH).float()
        return F.cross_entropy(logits_NK, targets_N, label_smoothing=self.label_smoothing)

    def response_ids(self, prompt: Prompt) -> list[int]:
        """The reference response in the model's tokens, with the stop that ends the turn."""
        if not prompt.response:
            raise PromptDataError(
                f"Prompt {prompt.index} has no response to learn from. "
                "Set data.train.response_field to the field that holds it."
            )
        return [*self.tokenizer.encode(prompt.response), self.tokenizer.stop_ids[0]]

    @override
    def validation_step(self, batch: PromptBatch, batch_idx: int) -> None:
        self.log("eval/loss", self.loss(batch.prompts), batch_size=len(batch))
        if self.grader is None:
            return
        for prompt, response in zip(batch.prompts, self.respond(batch.prompts), strict=True):
            self.accuracy.update(self.grader(prompt, response))
        self.log("eval/accuracy", self.accuracy, prog_bar=True, batch_size=len(batch))

    def respond(self, prompts: list[Prompt]) -> list[str]:
        """Greedy responses as text, without the stop; what hits the length limit stays cut."""
        assert self.model is not None
        engine = HFEngine(batch_size=len(prompts))
        engine.refresh(self.model, policy_version=self.global_step)
        generations = engine.generate(
            [self.tokenizer.render_prompt(prompt.messages) for prompt in prompts],
            seeds=[0] * len(prompts),  # greedy draws nothing
            sampling=SamplingParams(temperature=0.0, max_tokens=self.max_response_tokens),
            stop_ids=self.tokenizer.stop_ids,
        )
        stops = set(self.tokenizer.stop_ids)
        texts = [[i for i in generation.response_ids if i not in stops] for generation in generations]
        return [self.tokenizer.table.join(ids).decode(errors="replace") for ids in texts]

    @override
    def on_fit_end(self) -> None:
        if self.output is None or not self.trainer.is_global_zero:
            return
        assert self.model is not None
        folder = export_model(self.model, self.tokenizer.hf, Path(self.output), self.model_path)
        rank_zero_info(f"Exported the model to {folder}")


def _untrained(path: str, dtype: DtypeName, seed: int) -> PreTrainedModel:
    """A model with the folder's configuration and the weights that `seed` initialises."""
    config = load_config("model", path)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch_dtype(dtype))
    if (Path(path) / "generation_config.json").is_file():  # as from_pretrained would: it names the stops
        model.generation_config = GenerationConfig.from_pretrained(path)
    return model
