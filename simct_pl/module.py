"""DistillModule: one optimizer step of on-policy distillation, read from top to bottom.

    rollouts ► TokenizedPair ► UnitAlignment ► (per chunk) candidate scores ► divergence ► gradients ► optimizer

One Lightning batch is one optimizer step. Micro-batches are cut inside (manual optimization), so that the number of
response tokens of the GLOBAL batch is known before the first backward and the loss does not depend on how the batch was
cut.
"""

from __future__ import annotations

import os
from functools import cached_property

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from typing_extensions import override

from simct_pl.alignment.base import Aligner
from simct_pl.errors import CollapseError, RecipeError, RolloutError
from simct_pl.evaluation.bits import reference_bits
from simct_pl.evaluation.grader import Grader
from simct_pl.evaluation.metrics import HeldOutMetrics, HeldOutResult
from simct_pl.losses.base import Objective
from simct_pl.models import DtypeName, check_model_path, context_length, load_causal_lm, load_config
from simct_pl.optim import OptimizerConfig
from simct_pl.rollout.engine import RolloutProvider
from simct_pl.run_info import RunInfo
from simct_pl.scoring.candidates import PairTables
from simct_pl.scoring.chunks import UnitStats, chunked_loss
from simct_pl.scoring.heads import LMHead, response_states, verify_head
from simct_pl.scoring.microbatch import pack_by_length
from simct_pl.scoring.teacher import FrozenTeacher
from simct_pl.scoring.units import build_unit_rows
from simct_pl.tokenization.pair import TokenizerPair
from simct_pl.types import PromptBatch, Rollout, StepRecord, UnitAlignment

MAX_SKIPPED_IN_A_ROW = 10
NO_ROLLOUTS = (
    "Nobody generates rollouts. Add callbacks.RolloutCallback to trainer.callbacks; in an overlay, "
    "`trainer.callbacks:` REPLACES the list: write `trainer.callbacks+:` to append to it."
)


class DistillModule(L.LightningModule):
    """A student that learns from a frozen teacher of another tokenizer.

    Args:
        student, teacher: model folders or hub names.
        objective: what is minimised at each unit.
        aligner: how responses are cut into units.
        optimizer: learning rate, schedule, clipping.
        grader: scores held-out responses in [0, 1]; without one, validation reports losses and bits per byte only.
        micro_batch_tokens: padded tokens of one student forward and backward. It changes speed and memory, never the
            loss.
        teacher_batch_tokens: the same for the teacher's forward.
        chunk_tokens: rows of logits that exist at a time.
        student_dtype, teacher_dtype: of the weights (autocast is the trainer's `precision`).
        gradient_checkpointing: recompute the student's layers in backward.
        trust_remote_code: "student", "teacher" entries allow that model's own Python code to run; nobody's by default.
    """

    def __init__(
        self,
        student: str,
        teacher: str,
        objective: Objective,
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
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.student_path, self.teacher_path = os.path.expanduser(student), os.path.expanduser(teacher)
        self.objective, self.aligner, self.grader = objective, aligner, grader
        self.optimizer_config = optimizer
        self.micro_batch_tokens, self.teacher_batch_tokens = micro_batch_tokens, teacher_batch_tokens
        self.chunk_tokens = chunk_tokens
        self.student_dtype: DtypeName = student_dtype
        self.teacher_dtype: DtypeName = teacher_dtype
        self.gradient_checkpointing = gradient_checkpointing
        self.trust_remote_code = trust_remote_code
        self.held_out = HeldOutMetrics()
        self.teacher: FrozenTeacher | None = None
        self.num_skipped_steps = self.num_skipped_in_a_row = 0
        self.history: list[HeldOutResult] = []
        self.run_info: RunInfo | None = None

    # ---- set-up: everything that can be refused is refused before any weights load ----

    @cached_property
    def pair(self) -> TokenizerPair:
        return TokenizerPair.from_pretrained(self.student_path, self.teacher_path)

    @cached_property
    def student_context(self) -> int | None:
        """Longest prompt + response of the student, in its tokens."""
        return context_length(load_config("student", self.student_path, "student" in self.trust_remote_code))

    @cached_property
    def teacher_context(self) -> int | None:
        """The same for the teacher, in its tokens."""
        return context_length(load_config("teacher", self.teacher_path, "teacher" in self.trust_remote_code))

    @override
    def setup(self, stage: str) -> None:
        if not any(isinstance(callback, RolloutProvider) for callback in self.trainer.callbacks):  # type: ignore[attr-defined]
            raise RolloutError(NO_ROLLOUTS)
        if str(self.trainer.precision).startswith("16"):
            raise RecipeError(
                f"trainer.precision is {self.trainer.precision!r}; use bf16-mixed or 32: losses are not scaled."
            )
        self.check_models()

    def check_models(self) -> None:
        """Paths, configurations and tokenizers of both models; loads no weights.

        Raises:
            SimctError: of the kind that fits.
        """
        for role, path in (("student", self.student_path), ("teacher", self.teacher_path)):
            check_model_path(role, path)
            load_config(role, path, role in self.trust_remote_code)
        # Reading them raises what there is to raise: a model without a stop, a tokenizer without exact bytes.
        _ = self.pair.student.stop_ids, self.pair.teacher.stop_ids, self.pair.shared_vocab

    @override
    def configure_model(self) -> None:
        if self.teacher is not None:
            return
        student = load_causal_lm("student", self.student_path, self.student_dtype, "student" in self.trust_remote_code)
        verify_head(student)
        if self.gradient_checkpointing:
            student.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        self.student = student.train()
        self.teacher = FrozenTeacher(
            self.teacher_path, self.teacher_dtype, self.teacher_batch_tokens, "teacher" in self.trust_remote_code
        )

    @override
    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer, scheduler = self.optimizer_config.build(
            self.student.parameters(), self.trainer.estimated_stepping_batches
        )
        return [optimizer], [scheduler]

    @cached_property
    def tables(self) -> PairTables:
        with torch.inference_mode(False):  # validation may come first
            return PairTables.build(self.pair.shared_vocab, self.device)

    # ---- the step ----

    @override
    def training_step(self, batch: PromptBatch, batch_idx: int) -> None:
        rollouts = self._require_rollouts(batch)
        alignments = self.align(rollouts)
        num_global_tokens = int(self._over_ranks(sum(len(rollout.response_ids) for rollout in rollouts)).sum())
        loss_sum = 0.0
        stats: dict[int, UnitStats] = {}
        for members, weight in self._micro_batches(rollouts):
            loss, parts = self.loss_sum([rollouts[i] for i in members], [alignments[i] for i in members])
            # DDP and FSDP average gradients over ranks; the loss is a sum over the global batch.
            self.manual_backward(loss * (weight * self.trainer.world_size / num_global_tokens))
            loss_sum += weight * loss.item()
            stats.update(zip(members, parts, strict=True))
        self._optimizer_step()
        batch.record = StepRecord(
            rollouts, alignments, [stats[i] for i in range(len(rollouts))], loss_sum, num_global_tokens
        )
        self.log(
            "loss/train", self._over_ranks(loss_sum).sum() / num_global_tokens, prog_bar=True, batch_size=len(batch)
        )

    def align(self, rollouts: list[Rollout]) -> list[UnitAlignment]:
        """The units of each response."""
        tokenized = self.pair.tokenize_batch([(rollout.response_ids, rollout.stopped) for rollout in rollouts])
        return [self.aligner.align(pair) for pair in tokenized]

    def loss_sum(self, rollouts: list[Rollout], alignments: list[UnitAlignment]) -> tuple[Tensor, list[UnitStats]]:
        """Loss summed over all units of a micro-batch, and each response's statistics."""
        assert self.teacher is not None
        teacher = self.teacher.to(self.device)
        student_states = response_states(
            self.student, [r.prompt_ids for r in rollouts], [r.response_ids for r in rollouts]
        )
        teacher_states = teacher.states(
            [self.teacher_prompt_ids(r) for r in rollouts], [a.teacher_ids_T.tolist() for a in alignments]
        )
        rows = build_unit_rows(alignments, self.pair.shared_vocab, student_states.offsets, teacher_states.offsets)
        loss, stats = chunked_loss(
            student_states.hidden_NH,
            teacher_states.hidden_NH,
            rows.to(self.device),
            student_head=LMHead(self.student),
            teacher_head=teacher.logits,
            objective=self.objective,
            tables=self.tables,
            chunk_tokens=self.chunk_tokens,
        )
        num_units = [int(a.supervised_U.sum()) for a in alignments]
        num_tokens = [a.num_supervised_student_tokens for a in alignments]
        return loss, stats.split(num_units, num_tokens)

    def teacher_prompt_ids(self, rollout: Rollout) -> list[int]:
        """The prompt in the teacher's own template."""
        prompt = rollout.prompt
        return self.pair.teacher.render_prompt(prompt.teacher_messages or prompt.messages)

    def _require_rollouts(self, batch: PromptBatch) -> list[Rollout]:
        if not batch.rollouts:
            raise RolloutError(NO_ROLLOUTS)
        return batch.rollouts

    def _micro_batches(self, rollouts: list[Rollout]) -> list[tuple[list[int], float]]:
        """(indices, weight) of each micro-batch; the same number on every rank, or collectives would hang.

        A rank with fewer of them repeats its first response with weight zero.
        """
        lengths = [len(rollout.prompt_ids) + len(rollout.response_ids) for rollout in rollouts]
        groups = [(group, 1.0) for group in pack_by_length(lengths, self.micro_batch_tokens)]
        if self.trainer.world_size > 1:
            most = int(self._over_ranks(len(groups)).max())
            groups += [([0], 0.0)] * (most - len(groups))
        return groups

    def _optimizer_step(self) -> None:
        optimizer, scheduler = self.optimizers(), self.lr_schedulers()
        lr = optimizer.param_groups[0]["lr"]  # type: ignore[union-attr]
        norm = torch.nn.utils.clip_grad_norm_(self.student.parameters(), self.optimizer_config.max_grad_norm)
        if bool(torch.isfinite(norm)):
            optimizer.step()  # type: ignore[union-attr]
            scheduler.step()  # type: ignore[union-attr]
            self.num_skipped_in_a_row = 0
        else:  # a step with such gradients would ruin the weights
            self.num_skipped_steps += 1
            self.num_skipped_in_a_row += 1
            if self.num_skipped_in_a_row == MAX_SKIPPED_IN_A_ROW:
                raise CollapseError(
                    f"The gradients of {MAX_SKIPPED_IN_A_ROW} steps in a row are not finite; none was taken. "
                    "Lower optimizer.lr, or look for the first step at which loss/train or optim/grad_norm jumps."
                )
        optimizer.zero_grad()  # type: ignore[union-attr]
        self.log_dict(
            {
                "optim/grad_norm": norm,
                "optim/lr": lr,
                "optim/skipped_steps": float(self.num_skipped_steps),
            },
            batch_size=1,
        )

    # ---- held-out prompts ----

    @override
    def validation_step(self, batch: PromptBatch, batch_idx: int) -> None:
        rollouts = self._require_rollouts(batch)
        alignments = self.align(rollouts)
        for members in pack_by_length(
            [len(r.prompt_ids) + len(r.response_ids) for r in rollouts], self.micro_batch_tokens
        ):
            loss, _ = self.loss_sum([rollouts[i] for i in members], [alignments[i] for i in members])
            self.held_out.update_loss(loss.item(), sum(len(rollouts[i].response_ids) for i in members))
        for rollout, alignment in zip(rollouts, alignments, strict=True):
            self.held_out.update_response(rollout, alignment, self.grader)
        references = [prompt for prompt in batch.prompts if prompt.response]
        if references:
            bits = reference_bits(
                self.student, self.pair.student, references, self.micro_batch_tokens, self.chunk_tokens
            )
            self.held_out.update_bits(bits, sum(len((prompt.response or "").encode()) for prompt in references))
        batch.record = StepRecord(rollouts, alignments, [], 0.0, 0)

    @override
    def on_validation_epoch_end(self) -> None:
        metrics = self.held_out.compute()
        # "step" is what Lightning hands to the logger; left to itself it would count one step too few here.
        self.log_dict({**metrics, "step": float(self.global_step)})
        if not self.trainer.sanity_checking:
            numbers = {name: float(value) for name, value in metrics.items()}
            self.history.append(HeldOutResult(self.global_step, numbers, self.held_out.samples))
        self.held_out.reset()

    def _over_ranks(self, value: float) -> Tensor:
        """The value of every rank, float64 [ranks]."""
        gathered = self.all_gather(torch.tensor(value, dtype=torch.float64, device=self.device))
        assert isinstance(gathered, Tensor)
        return gathered.reshape(-1)
