"""The aligning thread: it runs beside the models, changes no number, passes its errors on and leaves nothing behind."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor

from simct_pl import CommonBoundaryAligner, DistillModule
from simct_pl.alignment.base import Aligner
from simct_pl.errors import AlignmentError
from simct_pl.tokenization.pair import TokenizedPair
from simct_pl.training.optim import OptimizerConfig
from simct_pl.types import PromptBatch, StepRecord, UnitAlignment
from tests.tiny import data, distill_module, sampled, trainer

WAIT_SECONDS = 30.0


@pytest.fixture(autouse=True)
def no_thread_left() -> Iterator[None]:
    yield
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("alignment")] == []


class Recorder(L.Callback):
    """Keeps each step's record, and the gradients before they are cleared."""

    def __init__(self) -> None:
        self.records: list[StepRecord] = []
        self.gradients: list[dict[str, Tensor]] = []

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: Any, optimizer: Any) -> None:
        found = {name: p.grad.clone() for name, p in pl_module.student.named_parameters() if p.grad is not None}
        self.gradients.append(found)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: PromptBatch, batch_idx: int
    ) -> None:
        assert batch.record is not None
        self.records.append(batch.record)


def one_step(folder: Path, module: DistillModule) -> Recorder:
    recorder = Recorder()
    trainer(folder, recorder, max_steps=1).fit(module, datamodule=data(batch_size=6))
    return recorder


def test_a_budget_of_one_response_and_of_all_give_the_same_step(tmp_path: Path) -> None:
    """Through the real step: other padding, other micro-batches of both models, the same loss and gradients."""
    unclipped = OptimizerConfig(lr=1e-4, max_grad_norm=float("inf"))
    alone, together = (
        one_step(tmp_path, distill_module(optimizer=unclipped, micro_batch_tokens=budget, teacher_batch_tokens=budget))
        for budget in (1, 100_000)
    )
    (first,), (second,) = alone.records, together.records
    assert len({len(rollout.response_ids) for rollout in first.rollouts}) > 1  # so that padding is at stake
    assert first.rollouts == second.rollouts
    assert first.loss_sum == pytest.approx(second.loss_sum, rel=1e-5)
    for one, other in zip(first.stats, second.stats, strict=True):
        torch.testing.assert_close(one.loss_U, other.loss_U, rtol=1e-3, atol=1e-5)
    for name, gradient in alone.gradients[0].items():
        assert (gradient - together.gradients[0][name]).norm() <= 1e-4 * gradient.norm(), name


def test_the_step_equals_the_plain_order(tmp_path: Path) -> None:
    """Bit for bit: align first, then grade, in the calling thread."""
    plain, budget = distill_module(), 120
    (record,) = one_step(tmp_path, distill_module(micro_batch_tokens=budget)).records
    plain.micro_batch_tokens = budget
    total = 0.0
    for members in plain._pack(record.rollouts):
        part = [record.rollouts[i] for i in members]
        aligned = plain.align(part)
        loss, stats = plain.loss_sum(part, aligned)
        total += loss.item()
        for i, alignment, found in zip(members, aligned.alignments, aligned.split(stats), strict=True):
            assert (record.alignments[i].units_U6 == alignment.units_U6).all()
            assert torch.equal(record.stats[i].loss_U, found.loss_U)
    assert record.loss_sum == total


class WaitsForTheStudent(Aligner):
    """Aligns nothing before the student has read something, in a thread that is not the step's."""

    def __init__(self) -> None:
        self.student_has_read = threading.Event()
        self.threads: set[str] = set()

    def align(self, pair: TokenizedPair) -> UnitAlignment:
        assert self.student_has_read.wait(WAIT_SECONDS), "alignment did not run beside the student's forward"
        self.threads.add(threading.current_thread().name)
        return CommonBoundaryAligner().align(pair)


def test_alignment_runs_while_the_student_reads(tmp_path: Path) -> None:
    aligner = WaitsForTheStudent()
    module = distill_module(aligner=aligner)

    class Tell(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
            # After the rollouts: HFEngine generates with the student itself.
            module.student.get_decoder().register_forward_hook(lambda *_: aligner.student_has_read.set())

    trainer(tmp_path, Tell(), max_steps=1).fit(module, datamodule=data())
    assert aligner.threads == {"alignment_0"}


class Broken(Aligner):
    def align(self, pair: TokenizedPair) -> UnitAlignment:
        raise AlignmentError("these two texts differ")


def test_an_error_of_the_thread_is_the_steps_error(tmp_path: Path) -> None:
    with pytest.raises(AlignmentError, match="these two texts differ"):
        trainer(tmp_path).fit(distill_module(aligner=Broken()), datamodule=data())


def test_an_error_of_the_step_ends_the_thread(tmp_path: Path) -> None:
    module = distill_module(micro_batch_tokens=1)

    def broken(*_: Any) -> None:
        raise RuntimeError("no memory left")

    class Break(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
            module.student.get_decoder().register_forward_hook(broken)

    # While the error is held, so are its frames: the thread must have ended all the same.
    with pytest.raises(RuntimeError, match="no memory left") as held:
        trainer(tmp_path, Break(), max_steps=1).fit(module, datamodule=data())
    assert held.value is not None


def test_a_module_that_has_trained_can_be_copied_and_pickled(tmp_path: Path) -> None:
    module = distill_module()
    one_step(tmp_path, module)
    rollouts = sampled(module)
    expected = module.loss_sum(rollouts, module.align(rollouts))[0].item()
    module.trainer = None  # Lightning's own, with its loaders
    for copied in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert copied.loss_sum(rollouts, copied.align(rollouts))[0].item() == expected
