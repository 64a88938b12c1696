"""RolloutCallback: the student answers the prompts of a step before the step, with the weights of that step.

Generation happens in `on_train_batch_start` and writes into the batch in place. A data set that generates would be one
optimizer step stale, because Lightning fetches a batch ahead.
"""

from __future__ import annotations

from itertools import islice

import lightning as L
from typing_extensions import override

from callbacks.distilled import distilled
from simct_pl.errors import PromptDataError, RecipeError
from simct_pl.models.loading import no_room
from simct_pl.rollout.engine import RolloutEngine, RolloutProvider, SamplingParams, StudentSource, sample_seed
from simct_pl.rollout.hf import HFEngine
from simct_pl.seeding import run_seed
from simct_pl.training.module import DistillModule
from simct_pl.types import Prompt, PromptBatch, Rollout

NUM_CHECKED_BATCHES = 64


class RolloutCallback(RolloutProvider):
    """Refreshes the engine with the student's weights and fills each batch with responses.

    Args:
        sampling: temperature, top_p, top_k, max_tokens of training rollouts.
        num_samples: responses a prompt.
        val_sampling: the same for held-out prompts; by default greedy with training's max_tokens.
        engine: who generates; HFEngine by default. It outlives fit and validate; engine.close() ends it.
        seed: with step, prompt and sample index it determines every sample; by default the run's seed_everything.
    """

    def __init__(
        self,
        sampling: SamplingParams = SamplingParams(),  # noqa: B008 - frozen
        num_samples: int = 1,
        val_sampling: SamplingParams | None = None,
        engine: RolloutEngine | None = None,
        seed: int | None = None,
    ) -> None:
        if num_samples < 1:
            raise RecipeError(f"num_samples is {num_samples}; expected at least one response a prompt.")
        self.sampling = sampling
        self.val_sampling = val_sampling or SamplingParams(temperature=0.0, max_tokens=sampling.max_tokens)
        self.num_samples = num_samples
        self.engine = engine or HFEngine()
        self.seed = run_seed(seed)
        self._checked_data: object = None

    @override
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Check the first prompts against the student's context, before any weights load."""
        module = distilled(self, pl_module)
        trusted = "student" in module.trust_remote_code
        self.engine.check(StudentSource(module.student_path, module.student_context, trusted, trainer.world_size))
        datamodule = getattr(trainer, "datamodule", None)
        context = module.student_context
        # Once a datamodule: fit and validate follow each other, and both come here.
        if datamodule is None or context is None or datamodule is self._checked_data:
            return
        # Both, whatever the stage: a fit scores held-out prompts first, and must not fail on a training prompt after
        # that.
        loaders = ((datamodule.train_dataloader, self.sampling), (datamodule.val_dataloader, self.val_sampling))
        for loader, sampling in loaders:
            for batch in islice(loader(), NUM_CHECKED_BATCHES):
                for prompt in batch.prompts:
                    self._render(module, prompt, sampling, context)
                    self._check_teacher(module, prompt)
        self._checked_data = datamodule

    @override
    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: PromptBatch, batch_idx: int
    ) -> None:
        module = distilled(self, pl_module)
        # Before the step, with the weights of the step: this is what makes it on-policy.
        self._refresh(module, trainer.global_step)
        batch.rollouts = self._generate(module, batch, self.sampling, self.num_samples, trainer.global_step)
        self._finish(module)

    @override
    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Here, because a sharded student takes all ranks, and one of them may have no held-out prompts.
        self._refresh(distilled(self, pl_module), trainer.global_step)

    @override
    def on_validation_batch_start(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        batch: PromptBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        # Step -1 for the seeds: held-out prompts draw the same at every validation.
        batch.rollouts = self._generate(distilled(self, pl_module), batch, self.val_sampling, 1, step=-1)

    @override
    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Before the module scores the responses, and on all ranks, however many prompts each had.
        self._finish(distilled(self, pl_module))

    def _refresh(self, module: DistillModule, step: int) -> None:
        # Validation and the next step may come at the same step; the weights go over once.
        if self.engine.policy_version != step:
            with module.phases("refresh"):
                self.engine.refresh(module.student, step)

    def _finish(self, module: DistillModule) -> None:
        with module.phases("rollout"):
            self.engine.finish()

    def _generate(
        self, module: DistillModule, batch: PromptBatch, sampling: SamplingParams, num_samples: int, step: int
    ) -> list[Rollout]:
        context = module.student_context
        # One request a sample. Its seed says where the sample stands in the run, so that neither the batch nor the rank
        # matters.
        requests: list[tuple[Prompt, int, list[int], int]] = []
        for prompt in batch.prompts:
            prompt_ids = self._render(module, prompt, sampling, context)
            for sample in range(num_samples):
                requests.append((prompt, sample, prompt_ids, sample_seed(self.seed, step, prompt.index, sample)))
        with module.phases("rollout"):
            generations = self.engine.generate(
                [prompt_ids for _, _, prompt_ids, _ in requests],
                [seed for *_, seed in requests],
                sampling,
                module.pair.student.stop_ids,
            )
        # What the engine says it holds, and not the step: policy/lag compares the two.
        version = self.engine.policy_version
        assert version is not None
        return [
            Rollout(prompt, sample, ids, g.response_ids, g.logprobs, g.finish_reason, version, seed)
            for (prompt, sample, ids, seed), g in zip(requests, generations, strict=True)
        ]

    @staticmethod
    def _render(module: DistillModule, prompt: Prompt, sampling: SamplingParams, context: int | None) -> list[int]:
        prompt_ids = module.pair.student.render_prompt(prompt.messages)
        if too_long := no_room(f"Prompt {prompt.index}", len(prompt_ids), sampling.max_tokens, context):
            raise PromptDataError(too_long)
        return prompt_ids

    @staticmethod
    def _check_teacher(module: DistillModule, prompt: Prompt) -> None:
        """The teacher's template must take the messages, and leave room for an answer."""
        num_tokens = len(module.pair.teacher.render_prompt(prompt.teacher_messages or prompt.messages))
        if module.teacher_context is not None and num_tokens >= module.teacher_context:
            raise PromptDataError(
                f"Prompt {prompt.index} has {num_tokens} tokens for the teacher, whose context is "
                f"{module.teacher_context}. "
                "Leave long prompts out (max_prompt_chars), or shorten teacher_system_prompt."
            )
