"""Gradients of 1:1 units and of the others: each right, both together the whole, and nothing of the run moved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor

from callbacks import AlignmentStats, RolloutCallback, SpanGradients
from callbacks.span_gradients import compare, gradients_by_kind
from simct_pl import CommonBoundaryAligner, DSKDEta, OneToOneAligner, SharedVocabLoss, SimCTLoss, TokenConditionalLoss
from simct_pl.errors import RecipeError
from simct_pl.losses.base import Objective
from simct_pl.losses.inputs.unit_rows import build_unit_rows
from simct_pl.models.sharding import Sharding
from simct_pl.rollout.engine import SamplingParams
from simct_pl.training.module import DistillModule
from simct_pl.types import Rollout
from tests.tiny import data, distill_module, regraded, sampled, trainer, unloaded_module


def whole_gradient(module: DistillModule, rollouts: list[Rollout]) -> list[Tensor]:
    module.student.zero_grad()
    loss, _ = module.loss_sum(rollouts, module.align(rollouts))
    loss.backward()
    found = [p.grad.clone() for p in module.student.parameters() if p.grad is not None]
    module.student.zero_grad()
    return found


def assert_near(found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert (one - other).norm() <= 1e-4 * other.norm() + 1e-7


@pytest.mark.parametrize("objective", [SimCTLoss("sum_logprob", "marginal"), TokenConditionalLoss()])
def test_both_together_are_the_whole_gradient(objective: Objective) -> None:
    module = distill_module(objective=objective, anchor_weight=3.0, micro_batch_tokens=60)
    module.setup("fit")
    rollouts = sampled(module)
    shared, others = gradients_by_kind(module, rollouts)
    assert all(parameter.grad is None for parameter in module.student.parameters())
    assert module.student_with_loss.loss_of("teacher").objective is objective
    assert module.student_with_loss.anchor is not None
    assert_near([a + b for a, b in zip(shared, others, strict=True)], whole_gradient(module, rollouts))
    assert min(sum(float(g.norm()) for g in kind) for kind in (shared, others)) > 1e-3


def test_each_is_the_gradient_of_its_own_units() -> None:
    """By other means: the units of the other kind get no rows at all."""

    class Only(DistillModule):
        ones = True

        def align(self, rollouts: Sequence[Rollout]) -> Any:
            aligned, kept = super().align(rollouts), []
            for alignment in aligned.alignments:
                units_U6 = alignment.units_U6
                one_U = ((units_U6[:, 1] - units_U6[:, 0]) == 1) & ((units_U6[:, 3] - units_U6[:, 2]) == 1)
                kept.append(replace(alignment, supervised_U=alignment.supervised_U & (one_U == self.ones)))
            return regraded(aligned, alignments=kept, rows=build_unit_rows(kept, self.pair.shared_vocab))

    module, only = distill_module(), distill_module(kind=Only)
    rollouts = sampled(module)
    for kind, ones in zip(gradients_by_kind(module, rollouts), (True, False), strict=True):
        only.ones = ones  # type: ignore[attr-defined]
        assert_near(kind, whole_gradient(only, rollouts))


def test_cosine_and_ratio_by_hand() -> None:
    one = [torch.tensor([3.0, 0.0]), torch.tensor([[4.0]])]
    other = [torch.tensor([1.0, 2.0]), torch.tensor([[-2.0]])]
    assert compare(one, other) == pytest.approx({"cosine": -5 / 15, "norm_ratio": 3 / 5})
    assert compare(one, one) == pytest.approx({"cosine": 1, "norm_ratio": 1})
    assert compare(one, [torch.zeros_like(g) for g in one]) == {}


class Keep(L.Callback):
    """Loss and span metrics after each step; a metric keeps its value until it is logged again."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.span: list[dict[str, float]] = []
        self.last: dict[str, float] = {}

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.last = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self.losses.append(self.last["loss/train"])
        self.span.append({name: value for name, value in self.last.items() if name.startswith("span/")})


def test_it_reports_on_its_steps_and_moves_nothing(tmp_path: Path) -> None:
    runs = {}
    for name, callbacks in (("with", [SpanGradients(every_n_steps=2)]), ("without", [])):
        kept, module = Keep(), distill_module()
        run = trainer(tmp_path, *callbacks, AlignmentStats(), kept, max_steps=3, limit_val_batches=0)
        run.fit(module, datamodule=data())
        runs[name] = kept, [parameter.detach() for parameter in module.student.parameters()]
    (found, weights), (plain, expected) = runs["with"], runs["without"]
    assert found.losses == plain.losses
    assert all(map(torch.equal, weights, expected))
    assert plain.span == [{}] * 3
    assert found.span[0].keys() == {"span/cosine", "span/norm_ratio"}
    assert found.span[0] == found.span[1] != found.span[2], "of steps 0 and 2"
    assert -1 <= found.last["span/cosine"] <= 1
    assert found.last["span/norm_ratio"] > 0
    assert 0 < found.last["align/tokens_outside_1_1"] < 1


def test_where_one_kind_has_no_loss_nothing_is_compared(tmp_path: Path) -> None:
    module, kept = distill_module(objective=SharedVocabLoss(), aligner=OneToOneAligner()), Keep()
    run = trainer(tmp_path, SpanGradients(every_n_steps=1), kept, max_steps=1, limit_val_batches=0)
    run.fit(module, datamodule=data())
    assert kept.span == [{}]


@pytest.mark.parametrize("name", ["every_n_steps", "num_responses"])
def test_numbers_below_one_are_refused(name: str) -> None:
    with pytest.raises(RecipeError, match=f"{name} of SpanGradients is 0; expected at least 1"):
        SpanGradients(**{name: 0})


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        ({"sharding": Sharding()}, r"each rank has a part.*trainer\.strategy=ddp"),
        ({"objective": DSKDEta()}, "DSKDEta compares hidden states"),
    ],
    ids=["sharded", "two spaces"],
)
def test_what_it_cannot_take_apart_is_refused(tmp_path: Path, overrides: dict[str, Any], named: str) -> None:
    callback = SpanGradients()
    with pytest.raises(RecipeError, match=named):
        callback.setup(trainer(tmp_path, callback), unloaded_module(**overrides), "fit")


def test_in_front_of_the_rollouts_it_is_refused(tmp_path: Path) -> None:
    callback = SpanGradients()
    run = trainer(tmp_path, callbacks=[callback, RolloutCallback(SamplingParams(max_tokens=8))])
    with pytest.raises(RecipeError, match="list it behind the rollout callback"):
        callback.setup(run, unloaded_module(aligner=CommonBoundaryAligner()), "fit")
