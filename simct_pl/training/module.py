"""DistillModule: one optimizer step of on-policy distillation, read from top to bottom.

    rollouts ► TokenizedPair ► UnitAlignment ► (per chunk) candidate scores ► divergence ► gradients ► optimizer

One Lightning batch is one optimizer step. Micro-batches are cut inside (manual optimization), so that the number of
response tokens of the GLOBAL batch is known before the first backward and the loss does not depend on how the batch was
cut. While the models run, a thread re-tokenises and aligns the micro-batches to come.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import cached_property, partial
from typing import Any

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from transformers import PreTrainedModel
from typing_extensions import override

from simct_pl.alignment.base import Aligner
from simct_pl.evaluation.grader import Grader
from simct_pl.losses.base import Objective
from simct_pl.losses.dual_space import DualSpaceObjective
from simct_pl.losses.inputs.vocab_tables import PairTables
from simct_pl.models.bits_per_byte import pack_references
from simct_pl.models.loading import DtypeName
from simct_pl.models.microbatch import pack_by_length
from simct_pl.models.read_once import ReadOnce
from simct_pl.models.sharding import Sharding, free_gathered
from simct_pl.training.anchor import AdaptersOff, Anchor
from simct_pl.training.chat import ChatSettings, supervised_share
from simct_pl.training.checks import check_anchor_weight, check_trainer, rollouts_of
from simct_pl.training.collectives import exchange_device, exchange_gradients, gather_scalars, pad_to_max_over_ranks
from simct_pl.training.graded_batch import GradedBatch, record_of
from simct_pl.training.held_out import HeldOutByTeacher, HeldOutResult
from simct_pl.training.lesson import Lesson, TeacherSettings
from simct_pl.training.optim import GuardedStep, OptimizerConfig
from simct_pl.training.pair_loss import PairLoss
from simct_pl.training.pair_module import PairModule, settings_of
from simct_pl.training.reading_models import Teacher, load_start, load_teacher
from simct_pl.training.step_timer import PhaseTimer
from simct_pl.training.student_with_loss import StudentWithLoss
from simct_pl.training.teacher_server import TeacherServer
from simct_pl.types import Prompt, PromptBatch, Rollout, UnitStats


class DistillModule(PairModule):
    """A student that learns from a frozen teacher of another tokenizer, or from several, each with its own.

    Args:
        student, teacher: model folders or hub names; teacher is null where there are several.
        objective: what is minimised at each unit; each of several teachers gets a copy.
        aligner: how responses are cut into units.
        optimizer: learning rate, schedule, clipping.
        grader: scores held-out responses in [0, 1]; without one, validation reports losses and bits per byte only.
        micro_batch_tokens: padded tokens of one student forward and backward. It changes speed and memory, never the
            loss.
        teacher_batch_tokens: the same for the teacher, which reads one micro-batch of the student's at a time.
        chunk_tokens: rows of logits that exist at a time.
        student_dtype, teacher_dtype: of the weights (autocast is the trainer's `precision`).
        gradient_checkpointing: recompute the student's layers in backward.
        trust_remote_code: "student", "teacher" entries allow that model's own Python code to run; nobody's by default.
        teacher_server: where the teacher's weights are if not here; its tokenizer and template are here all the same.
        anchor_weight: of KL(student || starting student) per student token; above 0 a frozen copy of it is loaded.
        sharding: how ranks share the student's weights, gradients and moments (FSDP2); null: each has them all.
        chat: arguments of the chat templates, and what becomes of a student's thinking; null: none, supervised.
        lora: fields of peft.LoraConfig: adapters are trained, and not the student; null: all of it, or, where student
            is an adapter folder, that adapter.
        teacher_kwargs: more arguments of the teacher's from_pretrained, such as a quantization_config.
        teacher_temperature: what the teacher's logits are divided by, for every loss and for the text KL.
        teachers: several, by name. A prompt that names one (Prompt.teacher) is graded by that one alone, any other by
            all of them: its loss is then their weighted mean.

    Raises:
        RecipeError: see settings_of and check_anchor_weight.
    """

    def __init__(
        self,
        student: str,
        teacher: str | None,
        objective: Objective | DualSpaceObjective,
        aligner: Aligner,
        optimizer: OptimizerConfig = OptimizerConfig(),  # noqa: B008 - frozen
        grader: Grader | None = None,
        micro_batch_tokens: int = 16_384,
        teacher_batch_tokens: int = 16_384,
        chunk_tokens: int = 1024,
        student_dtype: DtypeName = "float32",
        teacher_dtype: DtypeName = "bfloat16",
        gradient_checkpointing: bool = False,
        trust_remote_code: tuple[str, ...] = (),
        sharding: Sharding | None = None,
        anchor_weight: float = 0.0,
        chat: ChatSettings | None = None,
        lora: dict[str, Any] | None = None,
        teacher_kwargs: dict[str, Any] | None = None,
        teacher_server: TeacherServer | None = None,
        teachers: dict[str, TeacherSettings] | None = None,
        teacher_temperature: float = 1.0,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.aligner, self.grader = aligner, grader
        self.optimizer_config = optimizer
        self.micro_batch_tokens, self.teacher_batch_tokens = micro_batch_tokens, teacher_batch_tokens
        self.chunk_tokens, self.gradient_checkpointing = chunk_tokens, gradient_checkpointing
        self.student_dtype, self.teacher_dtype = student_dtype, teacher_dtype
        self.trust_remote_code, self.sharding, self.chat = trust_remote_code, sharding, chat or ChatSettings()
        of_one = {"kwargs": teacher_kwargs or {}, "server": teacher_server, "temperature": teacher_temperature}
        of_one["chat"] = self.chat.teacher
        self.use_models(student, settings_of(teacher, teachers, of_one), teacher_dtype, objective, lora)
        self.anchor_weight = check_anchor_weight(anchor_weight)
        self.held_out, self.guarded_step = HeldOutByTeacher([*self.lessons]), GuardedStep(optimizer.max_grad_norm)
        self._held_out_parts: list[tuple[list[Rollout], GradedBatch]] = []
        self._references: list[Prompt] = []
        self.phases, self.history = PhaseTimer(), list[HeldOutResult]()

    # ---- set-up: everything that can be refused is refused before any weights load ----

    @override
    def setup(self, stage: str) -> None:
        if self._trainer is not None:  # a plan is made without one
            check_trainer(self._trainer, self.sharding)
        _ = self.pair  # both folders, before anything is made of them
        self.check_lora(self.student_dtype, "student" in self.trust_remote_code)
        for lesson in self.lessons.values():
            lesson.check(self.sharding, exchange_device(self))

    @override
    def configure_model(self) -> None:
        if self.is_loaded:
            return
        trust, projected = "student" in self.trust_remote_code, isinstance(self.objective, DualSpaceObjective)
        # Projectors are made of the student's values, so every rank then reads them.
        read = ReadOnce.load(
            "student", self.student_path, self.student_dtype, trust, everywhere=projected, lora=self.lora
        )
        student = self.prepare_student(read.model, self.gradient_checkpointing)
        losses = {name: self._pair_loss(student, lesson) for name, lesson in self.lessons.items()}
        anchor = None
        if self.anchor_weight > 0:  # from the recipe's path: on a resume too, this is where the student began
            copy = partial(load_start, self, exchange_device(self))
            anchor = Anchor(AdaptersOff(student) if self.start_is_inside else copy(), self.anchor_weight)
        self.student_with_loss = StudentWithLoss(student, losses, self.phases, anchor)
        if self.sharding is not None:
            self.sharding.shard_student(self.student_with_loss, student, self.mesh)
        read.fill(exchange_device(self))

    def _pair_loss(self, student: PreTrainedModel, lesson: Lesson) -> PairLoss:
        """With the teacher's weights."""
        teacher = load_teacher(self, lesson, exchange_device(self))
        return PairLoss.build(student, teacher, lesson.objective, lesson.pair, self.chunk_tokens, self.phases)

    @cached_property
    def mesh(self) -> DeviceMesh:
        """The ranks among which a model is shared."""
        assert self.sharding is not None
        assert self.device_mesh is not None
        return self.sharding.mesh(self.device_mesh["data_parallel"])

    @property
    def student(self) -> PreTrainedModel:
        return self.student_with_loss.student

    @property
    def teacher(self) -> Teacher | None:
        """The only teacher, or the first; None until weights are loaded."""
        return self.student_with_loss.loss_of(self.first_lesson.name).teacher if self.is_loaded else None

    @property
    def is_loaded(self) -> bool:
        """Whether configure_model has run."""
        return "student_with_loss" in self._modules

    @override
    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer, scheduler = self.optimizer_config.build(
            self.student_with_loss.parameter_groups(), self.trainer.estimated_stepping_batches
        )
        return [optimizer], [scheduler]

    @property
    def tables(self) -> dict[str, PairTables]:
        """Of the student's vocabulary and each teacher's, on the module's device."""
        return {name: lesson.tables(self.device) for name, lesson in self.lessons.items()}

    # ---- the step ----

    @override
    def training_step(self, batch: PromptBatch, batch_idx: int) -> None:
        rollouts = self.chat.supervised_part(self.pair, rollouts_of(batch))
        # The divisor is known before any backward, and is the same on all ranks: how a batch is cut cannot matter.
        num_tokens = sum(rollout.num_targets for rollout in rollouts)
        num_global_tokens = max(int(gather_scalars(self, num_tokens).sum()), 1)  # a teacher's answers may spell nothing
        groups = pad_to_max_over_ranks(self, self._pack(rollouts), idle=[])
        loss_sum = torch.zeros((), dtype=torch.float64, device=self.device)
        # Micro-batches run in turn, backward at once after forward: one graph exists at a time.
        done: list[tuple[GradedBatch, list[UnitStats]]] = []
        # Closing it ends the aligning thread, after an error too.
        with closing(self._losses(rollouts, groups)) as losses:
            # DDP and FSDP average gradients over ranks; the loss is a sum over the global batch.
            scale = self.trainer.world_size / num_global_tokens
            for loss, stats, graded in losses:
                done.append((graded, graded.split(stats)))
                with (
                    self.phases("student_backward"),
                    exchange_gradients(self.trainer, now=len(done) == len(groups)),
                ):
                    self.manual_backward(loss * scale)
                loss_sum += loss.detach()
        with self.phases("optimizer"):
            metrics = self.guarded_step(self.student_with_loss.parameters(), self.optimizers(), self.lr_schedulers())  # type: ignore[arg-type]
        batches, parts = [one for one, _ in done], [found for _, found in done]
        batch.record = record_of(rollouts, groups, batches, parts, loss_sum.item(), num_global_tokens)
        loss_mean = gather_scalars(self, batch.record.loss_sum).sum() / num_global_tokens
        self.log("loss/train", loss_mean, prog_bar=True, batch_size=len(batch))
        if self.chat.thinking != "supervised":
            metrics["rollout/supervised_share"] = supervised_share(batch.rollouts or [], rollouts)
        metrics |= self.student_with_loss.metrics()
        self.log_dict(metrics, batch_size=1)

    def align(self, rollouts: Sequence[Rollout]) -> GradedBatch:
        """The units of each response, and what its teachers read."""
        return GradedBatch.of(rollouts, self.lessons, [self.lesson_of(r.prompt) for r in rollouts], self.aligner)

    def loss_sum(self, rollouts: Sequence[Rollout], graded: GradedBatch) -> tuple[Tensor, UnitStats]:
        """Loss summed over all units of a micro-batch, and their statistics: see StudentWithLoss."""
        loss, stats = self.student_with_loss(rollouts, lambda: graded, self.tables)
        return loss, stats

    def _losses(
        self, rollouts: list[Rollout], groups: Sequence[Sequence[int]]
    ) -> Generator[tuple[Tensor, UnitStats, GradedBatch]]:
        """Loss sum of each group, in order. A thread aligns them ahead, while the models run."""
        worker = ThreadPoolExecutor(1, thread_name_prefix="alignment")
        try:
            parts = [[rollouts[i] for i in members] for members in groups]
            # All parts go to the one thread at once; it takes them in order, and stays ahead.
            for part, to_come in zip(parts, [worker.submit(self.align, part) for part in parts], strict=True):
                yield (*self.student_with_loss(part, to_come.result, self.tables), to_come.result())
        finally:
            worker.shutdown(cancel_futures=True)

    def _pack(self, rollouts: list[Rollout]) -> list[list[int]]:
        return pack_by_length([len(r.prompt_ids) + len(r.response_ids) for r in rollouts], self.micro_batch_tokens)

    # ---- held-out prompts ----

    @override
    def validation_step(self, batch: PromptBatch, batch_idx: int) -> None:
        """Grade the responses. What takes the models waits for the epoch's end: ranks may have unequal shares, or none,
        and only then know how many forwards the others need.
        """
        rollouts = self.chat.supervised_part(self.pair, rollouts_of(batch))
        groups = self._pack(rollouts)
        parts = [[rollouts[i] for i in members] for members in groups]
        graded = [self.align(part) for part in parts]
        self._held_out_parts += zip(parts, graded, strict=True)
        self._references += [prompt for prompt in batch.prompts if prompt.response]
        batch.record = record_of(rollouts, groups, graded)
        self.held_out.update_responses(batch.record, self.grader)

    @override
    def test_step(self, batch: object, batch_idx: int) -> None:
        """Nothing: callbacks.BenchmarkCallback does what there is to do in this stage."""

    @override
    def on_validation_epoch_end(self) -> None:
        with self.trainer.precision_plugin.val_step_context():
            self._score_held_out()
        self.held_out.use(gather_scalars(self, self.held_out.in_use).any(0).tolist())
        metrics = self.held_out.compute()
        # "step" is what Lightning hands to the logger; left to itself it would count one step too few here.
        self.log_dict({**metrics, "step": float(self.global_step)})
        if not self.trainer.sanity_checking:
            self.history.append(HeldOutResult(self.global_step, metrics, self.held_out.all.samples))
        self.held_out.reset()

    def _score_held_out(self) -> None:
        """Loss of the responses and bits of the references that this rank has kept."""
        for rollouts, graded in pad_to_max_over_ranks(self, self._held_out_parts, idle=([], self.align([]))):
            loss, stats = self.loss_sum(rollouts, graded)
            if rollouts:
                self.held_out.update_losses(rollouts, graded, loss.item(), stats)
        groups = pack_references(self.pair.student, self._references, self.micro_batch_tokens)
        bits = sum(self.student_with_loss.bits(group) for group in pad_to_max_over_ranks(self, groups, idle=[]))
        if self._references:
            self.held_out.update_bits(bits, sum(len((prompt.response or "").encode()) for prompt in self._references))
        free_gathered(self.student_with_loss)
        self._held_out_parts, self._references = [], []
