"""TeacherRollout: the teacher answers the training prompts. Off-policy distillation, by any aligner and objective; with
CrossEntropyLoss it is SeqKD. Held-out prompts are still answered by the student.
"""

from __future__ import annotations

import math

import lightning as L
from typing_extensions import override

from callbacks.distilled import distilled
from callbacks.rollout import RolloutCallback
from simct_pl.errors import RecipeError
from simct_pl.rollout.engine import Generation, sample_seed
from simct_pl.rollout.hf import HFEngine
from simct_pl.training.module import DistillModule
from simct_pl.types import Prompt, PromptBatch, Rollout


class TeacherRollout(RolloutCallback):
    """Fills each training batch with the teacher's responses, spelt in the student's tokens.

    Takes RolloutCallback's arguments; `sampling` is the teacher's, in its tokens, and `engine` answers held-out
    prompts. Nobody knows the student's log-probabilities of such responses while they are made: engine_logprobs is NaN,
    and PolicyMismatch has nothing to compare.
    """

    on_policy = False

    @override
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        sharding = getattr(pl_module, "sharding", None)
        if sharding is not None and sharding.shard_teacher:
            raise RecipeError("TeacherRollout generates on each rank by itself; set sharding.shard_teacher to false.")

    @override
    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: PromptBatch, batch_idx: int
    ) -> None:
        module = distilled(self, pl_module)
        asked = [(prompt, sample) for prompt in batch.prompts for sample in range(self.num_samples)]
        seeds = [sample_seed(self.seed, trainer.global_step, prompt.index, sample) for prompt, sample in asked]
        with module.phases("rollout"):
            generations = self._ask_teacher(module, [prompt for prompt, _ in asked], seeds)
        batch.rollouts = [
            self._in_students_tokens(module, prompt, sample, seed, generation, trainer.global_step)
            for (prompt, sample), seed, generation in zip(asked, seeds, generations, strict=True)
        ]

    def _ask_teacher(self, module: DistillModule, prompts: list[Prompt], seeds: list[int]) -> list[Generation]:
        assert module.teacher is not None
        teacher, tokenizer = module.teacher.to(module.device), module.pair.teacher
        engine = HFEngine(batch_size=max(len(prompts), 1))
        engine.refresh(teacher.model, 0)
        prompt_ids = [tokenizer.render_prompt(prompt.teacher_messages or prompt.messages) for prompt in prompts]
        return engine.generate(prompt_ids, seeds, self.sampling, tokenizer.stop_ids)

    @staticmethod
    def _in_students_tokens(
        module: DistillModule, prompt: Prompt, sample: int, seed: int, generation: Generation, step: int
    ) -> Rollout:
        """The same text, and a stop if the teacher stopped; bytes that are no character (a cut one) are left out. What
        does not fit into the student's context is cut off.
        """
        student, teacher = module.pair.student, module.pair.teacher
        stopped = generation.finish_reason == "stop"
        # By bytes, as everywhere: the teacher's ids are spelt out and read by the student's tokenizer.
        text = teacher.response_bytes(generation.response_ids).decode(errors="ignore")
        ids = student.encode(text) + [student.stop_ids[0]] * stopped
        prompt_ids = student.render_prompt(prompt.messages)
        # A response that is cut has no stop, and must not be taken for one that ended.
        room, reason = (module.student_context or math.inf) - len(prompt_ids), generation.finish_reason
        if len(ids) > room:
            ids, reason = ids[: max(int(room), 0)], "length"
        return Rollout(prompt, sample, prompt_ids, ids, [math.nan] * len(ids), reason, step, seed)
