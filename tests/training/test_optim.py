"""The schedule at its corners, values that make no sense, and steps that are not taken."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from simct_pl.errors import CollapseError, RecipeError
from simct_pl.training.optim import MAX_SKIPPED_IN_A_ROW, GuardedStep, OptimizerConfig


def test_schedule_warms_up_and_ends_at_the_minimum() -> None:
    config = OptimizerConfig(lr=1e-3, min_lr=1e-5, warmup_ratio=0.1)
    rates = [1e-3 * config.scale(step, 100) for step in range(101)]
    assert all(a < b for a, b in pairwise(rates[:11]))
    assert rates[10] == pytest.approx(1e-3)
    assert rates[55] == pytest.approx(1e-5 + (1e-3 - 1e-5) * 0.5 * (1 + math.cos(math.pi * 0.5)))
    assert rates[100] == pytest.approx(1e-5)
    assert all(a > b for a, b in pairwise(rates[10:]))


def test_optimizer_follows_the_schedule() -> None:
    config = OptimizerConfig(lr=1e-3, betas=(0.8, 0.9), weight_decay=0.5, warmup_ratio=0.5)
    optimizer, scheduler = config.build([torch.nn.Parameter(torch.zeros(1))], 4)
    assert (optimizer.defaults["betas"], optimizer.defaults["weight_decay"]) == ((0.8, 0.9), 0.5)
    seen = []
    for _ in range(4):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert seen == pytest.approx([1e-3 * config.scale(step, 4) for step in range(4)])


@pytest.mark.parametrize(
    "values",
    [{"lr": 0.0}, {"lr": 1e-3, "min_lr": 1e-2}, {"warmup_ratio": 1.0}, {"max_grad_norm": 0.0}],
    ids=str,
)
def test_values_outside_their_range_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(RecipeError, match=list(values)[-1]):
        OptimizerConfig(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize("num_steps", [math.inf, 0])
def test_an_unbounded_run_is_refused(num_steps: float) -> None:
    with pytest.raises(RecipeError, match="max_steps"):
        OptimizerConfig().build([torch.nn.Parameter(torch.zeros(1))], num_steps)


def test_a_guarded_step_clips_steps_and_zeroes() -> None:
    parameter = torch.nn.Parameter(torch.zeros(2))
    optimizer, scheduler = OptimizerConfig(lr=1e-3, warmup_ratio=0.5).build([parameter], 4)
    parameter.grad = torch.tensor([3.0, 4.0])
    metrics = GuardedStep(max_grad_norm=1.0)([parameter], optimizer, scheduler)
    assert metrics == {
        "optim/grad_norm": pytest.approx(5.0),
        "optim/lr": pytest.approx(1e-3 / 3),
        "optim/skipped_steps": 0,
    }
    assert optimizer.state[parameter]["exp_avg"].tolist() == pytest.approx([0.06, 0.08])  # of the clipped gradient
    assert scheduler.last_epoch == 1
    assert parameter.grad is None
    assert (parameter < 0).all()


def test_only_skips_in_a_row_end_the_run() -> None:
    parameter = torch.nn.Parameter(torch.ones(1))
    step, (optimizer, scheduler) = GuardedStep(max_grad_norm=1.0), OptimizerConfig().build([parameter], 100)

    def take(gradient: float) -> None:
        parameter.grad = torch.tensor([gradient])
        step([parameter], optimizer, scheduler)

    for _ in range(MAX_SKIPPED_IN_A_ROW - 1):
        take(math.inf)
    assert (parameter.item(), scheduler.last_epoch) == (1.0, 0)
    take(1.0)
    for _ in range(MAX_SKIPPED_IN_A_ROW - 1):
        take(math.nan)
    assert step.num_skipped == 2 * MAX_SKIPPED_IN_A_ROW - 2
    again = GuardedStep(max_grad_norm=1.0)
    again.load_state_dict(step.state_dict())
    assert vars(again) == vars(step)
    with pytest.raises(CollapseError, match=f"{MAX_SKIPPED_IN_A_ROW} steps in a row"):
        take(math.nan)
