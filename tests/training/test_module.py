"""The step: one gradient however it is cut, the right one, and one that is refused."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from tokenizers import AddedToken, Tokenizer
from torch import Tensor

from callbacks import AlignmentStats, PolicyMismatch, RolloutCallback
from simct_pl import DistillModule, SharedVocabLoss, SimCTLoss, XTokenPKL
from simct_pl.errors import CollapseError, RecipeError, RolloutError
from simct_pl.losses.base import Objective, UnitChunk, UnitLosses
from simct_pl.rollout.engine import SamplingParams
from simct_pl.training.optim import OptimizerConfig
from simct_pl.types import PromptBatch, Rollout
from tests.tiny import ASSETS, data, distill_module, sampled, trainer


def gradient(
    module: DistillModule, rollouts: list[Rollout], groups: list[list[int]]
) -> tuple[float, dict[str, Tensor]]:
    """Loss sum and gradients, accumulated over groups of rollouts."""
    module.student.zero_grad()
    total = 0.0
    for group in groups:
        members = [rollouts[i] for i in group]
        loss, _ = module.loss_sum(members, module.align(members))
        loss.backward()
        total += loss.item()
    return total, {name: p.grad.clone() for name, p in module.student.named_parameters() if p.grad is not None}


def assert_same(first: tuple[float, dict[str, Tensor]], second: tuple[float, dict[str, Tensor]]) -> None:
    assert first[0] == pytest.approx(second[0], rel=1e-5)
    assert first[0] > 0
    for name, grad in first[1].items():
        assert (grad - second[1][name]).norm() <= 1e-4 * grad.norm(), name


@pytest.mark.parametrize(
    "groups", [[[0], [1], [2], [3], [4], [5]], [[5, 2], [0, 1, 4], [3]]], ids=["one by one", "mixed"]
)
def test_the_gradient_does_not_depend_on_the_micro_batches(groups: list[list[int]]) -> None:
    module = distill_module(student_dtype="float32")
    rollouts = sampled(module)
    assert len({len(r.response_ids) for r in rollouts}) > 3  # so that padding is at stake
    assert {r.finish_reason for r in rollouts} == {"stop", "length"}
    assert_same(gradient(module, rollouts, [list(range(6))]), gradient(module, rollouts, groups))


@pytest.mark.parametrize(
    "objective",
    [SimCTLoss(), SimCTLoss("sum_logprob", "marginal"), SharedVocabLoss()],
    ids=["paper", "marginal", "exact"],
)
def test_the_same_tokenizer_gives_full_vocabulary_reverse_kl(objective: Objective) -> None:
    """Against KL over all logits of plain forwards, one response at a time; the student is a perturbed teacher."""
    module = distill_module(student=str(ASSETS / "teacher"), objective=objective)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.student.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    rollouts = sampled(module)
    found = gradient(module, rollouts, [list(range(6))])
    module.student.zero_grad()
    expected = torch.zeros(())
    for rollout in rollouts:
        ids, first = torch.tensor([rollout.prompt_ids + rollout.response_ids]), len(rollout.prompt_ids) - 1
        student = module.student(ids).logits[0, first:-1].log_softmax(-1)
        assert module.teacher is not None
        teacher = module.teacher.model(ids).logits[0, first:-1].log_softmax(-1)
        expected = expected + (student.exp() * (student - teacher)).sum()
    expected.backward()
    grads = {name: p.grad.clone() for name, p in module.student.named_parameters() if p.grad is not None}
    assert_same(found, (expected.item(), grads))


@pytest.mark.parametrize("objective", [SimCTLoss("sum_logprob", "marginal"), XTokenPKL()], ids=["marginal", "xtoken"])
@pytest.mark.parametrize("side", ["student", "teacher"])
def test_a_token_without_a_row_in_its_model_changes_nothing(side: str, objective: Objective, tmp_path: Path) -> None:
    """As Gemma-3-1B's image token, whose id lies one beyond the last row."""
    folder = tmp_path / side
    shutil.copytree(ASSETS / side, folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_tokens([AddedToken("<image>", special=False)])
    tokenizer.save(str(folder / "tokenizer.json"))
    plain, odd = distill_module(objective=objective), distill_module(objective=objective, **{side: str(folder)})
    rollouts, found = sampled(plain), []
    for module in (plain, odd):
        objective.prepare(module.pair)
        found.append(gradient(module, rollouts, [list(range(6))]))
    assert_same(*found)


def test_the_teacher_is_neither_saved_nor_trained_with_the_student() -> None:
    module = distill_module()
    assert not any("teacher" in name for name in module.state_dict())
    assert module.teacher is not None
    assert not any(p.requires_grad for p in module.teacher.model.parameters())
    loss, _ = module.loss_sum(rollouts := sampled(module), module.align(rollouts))
    loss.backward()
    assert all(p.grad is None for p in module.teacher.model.parameters())
    assert all(p.grad is not None for p in module.student.parameters())


def test_a_micro_batch_of_nothing_runs_backward_through_everything() -> None:
    """What a rank does that has nothing left to read: a zero, and a gradient of zeros for every parameter."""
    module = distill_module()
    loss, grads = gradient(module, [], [[]])
    assert loss == 0
    assert grads.keys() == dict(module.student.named_parameters()).keys()
    assert not any(grad.any() for grad in grads.values())
    assert module.student_with_loss.bits([]) == 0


def test_gradient_checkpointing_changes_no_gradient() -> None:
    plain, checkpointed = distill_module(), distill_module(gradient_checkpointing=True)
    rollouts = sampled(plain)
    assert_same(gradient(plain, rollouts, [list(range(6))]), gradient(checkpointed, rollouts, [list(range(6))]))


def test_bfloat16_is_finite_and_near() -> None:
    plain, half = distill_module(), distill_module(student_dtype="bfloat16", teacher_dtype="bfloat16")
    rollouts = sampled(plain)
    expected, _ = gradient(plain, rollouts, [list(range(6))])
    found, grads = gradient(half, rollouts, [list(range(6))])
    assert found == pytest.approx(expected, rel=0.1)
    assert all(torch.isfinite(grad).all() for grad in grads.values())


def test_the_loss_is_normalised_by_all_response_tokens(tmp_path: Path) -> None:
    """loss/train x response tokens = the loss sum of the very rollouts, before the weights moved."""
    seen: list[PromptBatch] = []

    class Keep(L.Callback):
        def on_train_batch_end(
            self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: PromptBatch, batch_idx: int
        ) -> None:
            seen.append(batch)
            assert batch.record is not None
            logged = trainer.callback_metrics["loss/train"] * batch.record.num_global_tokens
            assert float(logged) == pytest.approx(batch.record.loss_sum, rel=1e-5)

    fresh = distill_module()
    trainer(tmp_path, Keep(), PolicyMismatch(), max_steps=1).fit(distill_module(), datamodule=data())
    (batch,) = seen
    assert batch.rollouts is not None
    assert batch.record is not None
    assert batch.record.num_global_tokens == sum(len(r.response_ids) for r in batch.rollouts)
    loss, _ = fresh.loss_sum(batch.rollouts, fresh.align(batch.rollouts))
    assert loss.item() == pytest.approx(batch.record.loss_sum, rel=1e-5)


def test_a_batch_whose_responses_are_all_empty_is_a_step_of_nothing(tmp_path: Path) -> None:
    """As of a teacher that was cut inside its first character."""

    class Emptied(RolloutCallback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: PromptBatch, batch_idx: int) -> None:
            super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
            assert batch.rollouts is not None
            nothing = {"response_ids": [], "engine_logprobs": [], "finish_reason": "length"}
            batch.rollouts = [replace(rollout, **nothing) for rollout in batch.rollouts]

    module = distill_module()
    before = [parameter.detach().clone() for parameter in module.student.parameters()]
    run = trainer(tmp_path, callbacks=[Emptied(SamplingParams(max_tokens=4)), AlignmentStats(), PolicyMismatch()])
    run.fit(module, datamodule=data())
    assert run.global_step == 2
    assert float(run.callback_metrics["loss/train"]) == 0
    assert float(run.callback_metrics["align/lost_empty_response"]) == 4
    assert all(map(torch.equal, before, module.student.parameters()))


def test_rollouts_come_from_the_weights_of_the_step(tmp_path: Path) -> None:
    versions: list[set[int]] = []

    class Keep(L.Callback):
        def on_train_batch_end(
            self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: PromptBatch, batch_idx: int
        ) -> None:
            assert batch.rollouts is not None
            versions.append({rollout.policy_version for rollout in batch.rollouts})
            assert float(trainer.callback_metrics["policy/lag"]) == 0
            assert float(trainer.callback_metrics["policy/mismatch_p99"]) < 1e-4

    trainer(tmp_path, PolicyMismatch(), Keep(), max_steps=3).fit(distill_module(), datamodule=data())
    assert versions == [{0}, {1}, {2}]


def test_a_fit_without_rollouts_is_refused_before_weights_load(tmp_path: Path) -> None:
    module = DistillModule(str(ASSETS / "student"), str(ASSETS / "teacher"), SimCTLoss(), distill_module().aligner)
    lonely = trainer(tmp_path, callbacks=[])
    with pytest.raises(RolloutError, match="RolloutCallback"):
        lonely.fit(module, datamodule=data())
    assert module.teacher is None


class BrokenAtFirst(Objective):
    """NaN in its first chunk, the paper's loss afterwards."""

    def __init__(self) -> None:
        self.calls, self.paper = 0, SimCTLoss()

    def __call__(self, chunk: UnitChunk) -> UnitLosses:
        self.calls += 1
        losses = self.paper(chunk)
        if self.calls > 1:
            return losses
        return UnitLosses(
            losses.loss_U * math.nan, losses.supervised_U, losses.student_logmass_U, losses.teacher_logmass_U
        )

    def describe(self) -> dict[str, object]:
        return {}


def test_a_step_without_finite_gradients_is_skipped_and_counted(tmp_path: Path) -> None:
    module = distill_module(objective=BrokenAtFirst())
    before = {name: p.clone() for name, p in module.student.named_parameters()}

    class Check(L.Callback):
        def on_train_batch_end(
            self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: PromptBatch, batch_idx: int
        ) -> None:
            if batch_idx == 0:
                assert all(torch.equal(before[name], p) for name, p in module.student.named_parameters())

    trainer(tmp_path, Check(), max_steps=1).fit(module, datamodule=data())
    assert module.guarded_step.num_skipped == 1
    assert all(torch.isfinite(p).all() for p in module.student.parameters())
    assert not all(torch.equal(before[name], p) for name, p in module.student.named_parameters())


def test_gradients_that_stay_broken_end_the_run(tmp_path: Path) -> None:
    run = trainer(tmp_path, max_steps=4)
    with pytest.raises(CollapseError, match="in a row"):
        run.fit(distill_module(optimizer=OptimizerConfig(lr=1e30)), datamodule=data(num_train_batches=40))
    assert run.global_step < 4


def test_half_precision_with_a_loss_scale_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A property, because Lightning itself turns 16-mixed into bf16-mixed on a CPU.
    monkeypatch.setattr(L.Trainer, "precision", property(lambda self: "16-mixed"))
    with pytest.raises(RecipeError, match="bf16-mixed"):
        trainer(tmp_path).fit(distill_module(), datamodule=data())


@pytest.mark.parametrize("seed", [0, 1])
def test_components_take_the_runs_seed_unless_they_have_their_own(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", str(seed))
    assert RolloutCallback().seed == data().seed == seed
    assert RolloutCallback(seed=5).seed == data(seed=5).seed == 5


def test_validation_keeps_a_history(tmp_path: Path) -> None:
    module = distill_module(grader=None)
    trainer(tmp_path, max_steps=2, val_check_interval=1).fit(module, datamodule=data())
    assert [result.step for result in module.history] == [1, 2]
    assert set(module.history[0].metrics) >= {"eval/loss", "eval/bits_per_byte", "eval/coverage"}
    assert "eval/accuracy" not in module.history[0].metrics
    assert len(module.history[0].samples) == 4
