"""RolloutCallback: the student answers the prompts of a step before the step, with the weights of that step; a share of
them the teacher answers instead, where a recipe says so.

Generation happens in `on_train_batch_start` and writes into the batch in place. A data set that generates would be one
optimizer step stale, because Lightning fetches a batch ahead.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import lightning as L
from typing_extensions import override

from callbacks.distilled import distilled
from callbacks.teacher_answers import teacher_rollouts
from simct_pl.errors import PromptDataError, RecipeError
from simct_pl.models.loading import no_room
from simct_pl.rollout.engine import RolloutEngine, RolloutProvider, SamplingParams, StudentSource, sample_seed
from simct_pl.rollout.hf import HFEngine
from simct_pl.seeding import run_seed
from simct_pl.training.module import DistillModule
from simct_pl.types import Prompt, PromptBatch, Rollout

NUM_CHECKED_BATCHES = 64
AUTHOR = -1  # as a sample's index: the stream that says who answers a prompt


class RolloutCallback(RolloutProvider):
    """Refreshes the engine with the student's weights and fills each batch with responses.

    Args:
        sampling: temperature, top_p, top_k, max_tokens of training rollouts.
        num_samples: responses a prompt.
        val_sampling: the same for held-out prompts; by default greedy with training's max_tokens.
        engine: who generates; HFEngine by default. It outlives fit and validate; engine.close() ends it.
        seed: with step, prompt and sample index it determines every sample; by default the run's seed_everything.
        teacher_share: probability that the teacher answers a training prompt, with all its samples (GKD's 1 - lambda,
            arXiv 2306.13649). Drawn for each prompt and step from the seed, so that neither ranks nor a resume matter,
            and what the student answers it answers as it would without the others.
        teacher_sampling: how the teacher answers, in its own tokens; by default as `sampling`.

    Raises:
        RecipeError: for a number out of its range, or a teacher_sampling that nothing is drawn with.
    """

    def __init__(
        self,
        sampling: SamplingParams = SamplingParams(),  # noqa: B008 - frozen
        num_samples: int = 1,
        val_sampling: SamplingParams | None = None,
        engine: RolloutEngine | None = None,
        seed: int | None = None,
        teacher_share: float = 0.0,
        teacher_sampling: SamplingParams | None = None,
    ) -> None:
        if num_samples < 1:
            raise RecipeError(f"num_samples is {num_samples}; expected at least one response a prompt.")
        if not 0 <= teacher_share <= 1:
            raise RecipeError(f"teacher_share is {teacher_share}; expected a share between 0 (nobody's) and 1 (all).")
        if teacher_sampling is not None and teacher_share == 0:
            raise RecipeError(
                "teacher_sampling is given, and teacher_share is 0: the teacher answers nothing. Set teacher_share, or "
                "leave teacher_sampling out."
            )
        self.sampling = sampling
        self.val_sampling = val_sampling or SamplingParams(temperature=0.0, max_tokens=sampling.max_tokens)
        self.num_samples = num_samples
        self.engine = engine or HFEngine()
        self.seed = run_seed(seed)
        self.teacher_share, self.teacher_sampling = teacher_share, teacher_sampling or sampling
        self.on_policy = teacher_share < 1
        self._checked_data: object = None

    @override
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Check the first prompts against the models' contexts, before any weights load."""
        module = distilled(self, pl_module)
        self._check_teacher_can_answer(module)
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
        step = trainer.global_step
        by_teacher = [self._asks_teacher(step, prompt) for prompt in batch.prompts]
        own = [prompt for prompt, taught in zip(batch.prompts, by_teacher, strict=True) if not taught]
        others = [prompt for prompt, taught in zip(batch.prompts, by_teacher, strict=True) if taught]
        answers: list[Rollout] = []
        if self.teacher_share < 1:
            # Before the step, with the weights of the step: this is what makes it on-policy. On every rank, whoever
            # answers its prompts: a sharded student takes all of them.
            self._refresh(module, step)
            answers = self._generate(module, own, self.sampling, self.num_samples, step)
            self._finish(module)
        with module.phases("rollout"):
            asked = self._asked(others, self.num_samples, step)
            teachers = teacher_rollouts(module, asked, self.teacher_sampling, step)
        # In the order of the prompts again.
        sources = {False: iter(answers), True: iter(teachers)}
        batch.rollouts = [next(sources[who]) for who in by_teacher for _ in range(self.num_samples)]
        if self.teacher_share > 0:
            share = sum(by_teacher) / max(len(by_teacher), 1)
            pl_module.log("rollout/teacher_share", share, batch_size=len(batch), sync_dist=True)

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
        batch.rollouts = self._generate(distilled(self, pl_module), batch.prompts, self.val_sampling, 1, step=-1)

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

    def _asks_teacher(self, step: int, prompt: Prompt) -> bool:
        # 63 bits as a number in [0, 1): a stream of its own, so that it has nothing to do with what is sampled.
        return sample_seed(self.seed, step, prompt.index, AUTHOR) / 2**63 < self.teacher_share

    def _asked(self, prompts: Sequence[Prompt], num_samples: int, step: int) -> list[tuple[Prompt, int, int]]:
        """(prompt, sample index, seed) of each sample. The seed says where it stands in the run, so that neither the
        batch nor the rank matters.
        """
        samples = range(num_samples)
        return [(p, sample, sample_seed(self.seed, step, p.index, sample)) for p in prompts for sample in samples]

    def _generate(
        self, module: DistillModule, prompts: Sequence[Prompt], sampling: SamplingParams, num_samples: int, step: int
    ) -> list[Rollout]:
        if not prompts:
            return []
        context = module.student_context
        # One request a sample.
        asked = self._asked(prompts, num_samples, step)
        prompts_ids = [ids for p in prompts for ids in [self._render(module, p, sampling, context)] * num_samples]
        with module.phases("rollout"):
            seeds = [seed for *_, seed in asked]
            generations = self.engine.generate(prompts_ids, seeds, sampling, module.pair.student.stop_ids)
        # What the engine says it holds, and not the step: policy/lag compares the two.
        version = self.engine.policy_version
        assert version is not None
        return [
            Rollout(prompt, sample, ids, g.response_ids, g.logprobs, g.finish_reason, version, seed)
            for (prompt, sample, seed), ids, g in zip(asked, prompts_ids, generations, strict=True)
        ]

    @staticmethod
    def _render(module: DistillModule, prompt: Prompt, sampling: SamplingParams, context: int | None) -> list[int]:
        prompt_ids = module.pair.student.render(prompt)
        if too_long := no_room(f"Prompt {prompt.index}", len(prompt_ids), sampling.max_tokens, context):
            raise PromptDataError(too_long)
        return prompt_ids

    def _check_teacher_can_answer(self, module: DistillModule) -> None:
        """Refuse what a share of the teacher's answers cannot be combined with."""
        if self.teacher_share == 0:
            return
        if any(lesson.server is not None for lesson in module.lessons.values()):
            raise RecipeError(
                f"{type(self).__name__}: the teacher answers with its own weights, for teacher_share="
                f"{self.teacher_share:g}, and they are on a server. Leave teacher_server out, or the share; or let "
                "`generate` write the answers first."
            )
        if module.sharding is not None and module.sharding.shard_teacher:
            raise RecipeError(
                f"{type(self).__name__}: the teacher generates on each rank by itself, for teacher_share="
                f"{self.teacher_share:g}; set sharding.shard_teacher to false."
            )
        if module.objective.own_responses_only:
            raise RecipeError(
                f"{type(module.objective).__name__} takes every response for the student's own sample, and with "
                f"teacher_share={self.teacher_share:g} the teacher writes some. Leave teacher_share out (and "
                "TeacherRollout), or take another objective."
            )

    def _check_teacher(self, module: DistillModule, prompt: Prompt) -> None:
        """The teacher's template must take the messages, and leave room for an answer; of every teacher that grades."""
        only = module.lesson_of(prompt)
        if only is None and len(module.lessons) > 1 and self.teacher_share > 0:
            raise RecipeError(
                f"Prompt {prompt.index} names no teacher, and with teacher_share={self.teacher_share:g} one of "
                f"{', '.join(module.lessons)} has to answer it. Name one in each row (teacher_name_field), or leave "
                "teacher_share out."
            )
        for lesson in module.lessons.values() if only is None else (only,):
            num_tokens = len(lesson.pair.teacher.render(prompt.for_teacher))
            if lesson.context is not None and num_tokens >= lesson.context:
                raise PromptDataError(
                    f"Prompt {prompt.index} has {num_tokens} tokens for the teacher, whose context is "
                    f"{lesson.context}. "
                    "Leave long prompts out (max_prompt_chars), or shorten teacher_system_prompt."
                )
            limit = self.teacher_sampling.max_tokens
            too_long = no_room(f"Prompt {prompt.index}", num_tokens, limit, lesson.context, model="teacher")
            if self.teacher_share > 0 and too_long:
                raise PromptDataError(too_long)
