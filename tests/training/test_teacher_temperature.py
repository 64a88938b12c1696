"""A teacher at another temperature against one whose head says so by itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from simct_pl import SimCTLoss, TokenConditionalLoss
from simct_pl.errors import RecipeError
from simct_pl.losses.cross_entropy import CrossEntropyLoss
from simct_pl.training.lesson import TeacherSettings
from simct_pl.training.module import DistillModule
from simct_pl.training.teacher import FrozenTeacher
from simct_pl.training.text_kl import text_kl_sums
from tests.tiny import ASSETS, distill_module, sampled, unloaded_module

TEMPERATURE = 0.4


def prepared(**overrides: Any) -> DistillModule:
    module = distill_module(**overrides)
    for lesson in module.lessons.values():
        lesson.objective.prepare(lesson.pair)
    return module


def with_a_sharper_head(module: DistillModule) -> DistillModule:
    """The same weights, those of the teacher's head divided."""
    for loss in module.student_with_loss.losses:
        teacher = loss.teacher
        assert isinstance(teacher, FrozenTeacher)
        old = teacher.head.projection
        new = nn.Linear(old.in_features, old.out_features, bias=False)
        new.weight = nn.Parameter(old.weight / TEMPERATURE, requires_grad=False)
        teacher.head = replace(teacher.head, projection=new)
    return module


def step(module: DistillModule) -> tuple[float, list[Tensor], Tensor]:
    """(loss, gradients, sums of the text KL) of the same responses."""
    rollouts = sampled(module)
    graded = module.align(rollouts)
    loss, stats = module.loss_sum(rollouts, graded)
    gradients = torch.autograd.grad(loss, [p for p in module.student.parameters() if p.requires_grad])
    return loss.item(), list(gradients), text_kl_sums(graded.alignments, graded.split(stats))


@pytest.mark.parametrize("objective", [SimCTLoss("sum_logprob", "marginal"), TokenConditionalLoss("jsd")])
def test_loss_gradients_and_text_kl_are_of_the_sharper_teacher(objective: Any) -> None:
    found = step(prepared(objective=objective, teacher_temperature=TEMPERATURE))
    expected = step(with_a_sharper_head(prepared(objective=objective)))
    plain = step(prepared(objective=objective))
    assert found[0] == pytest.approx(expected[0], rel=1e-5)
    assert abs(found[0] - plain[0]) > 0.01 * abs(plain[0])
    for one, other in zip(found[1], expected[1], strict=True):
        assert (one - other).norm() <= 1e-4 * other.norm() + 1e-7
    torch.testing.assert_close(found[2], expected[2], rtol=1e-5, atol=1e-5)


def test_the_likelihood_of_an_answer_asks_no_teacher() -> None:
    found, plain = (step(prepared(objective=CrossEntropyLoss(), teacher_temperature=t)) for t in (TEMPERATURE, 1.0))
    assert found[0] == pytest.approx(plain[0], rel=1e-6)


def test_each_of_several_teachers_has_its_own() -> None:
    teachers = {
        "sharp": TeacherSettings(str(ASSETS / "teacher"), temperature=TEMPERATURE),
        "plain": TeacherSettings(str(ASSETS / "teacher")),
    }
    both = prepared(teacher=None, teachers=teachers)
    rollouts = sampled(both)
    loss, _ = both.loss_sum(rollouts, both.align(rollouts))
    alone = [step(prepared(teacher_temperature=t))[0] for t in (TEMPERATURE, 1.0)]
    assert loss.item() == pytest.approx(sum(alone) / 2, rel=1e-5)


@pytest.mark.parametrize("value", [0.0, -1.0, float("inf"), float("nan")])
def test_values_that_are_no_temperature_are_refused(value: float) -> None:
    with pytest.raises(RecipeError, match="temperature of teacher"):
        unloaded_module(teacher_temperature=value)


def test_it_belongs_to_each_of_several_teachers() -> None:
    settings = {"one": TeacherSettings(str(ASSETS / "teacher"))}
    with pytest.raises(RecipeError, match="teacher_temperature belong to a single teacher"):
        unloaded_module(teacher=None, teachers=settings, teacher_temperature=0.5)
