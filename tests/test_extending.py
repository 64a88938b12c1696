"""The code of docs/extending.md, read out of the page and trained with."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from simct_pl.alignment.base import check_invariants
from simct_pl.lightning_cli import PACKAGE, open_recipes
from simct_pl.module import DistillModule
from simct_pl.planning.dry_run import PlanningCLI
from tests.tiny import ASSETS, sampled

PAGE = PACKAGE.parent / "docs/extending.md"


def block(language: str) -> str:
    (found,) = re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return found


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DistillModule:
    """The quickstart's, with the page's recipe over it."""
    (tmp_path / "mine.py").write_text(block("python"), encoding="utf-8")
    (tmp_path / "mine.yaml").write_text(block("yaml"), encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    cli = open_recipes(["fit", "--recipe", "quickstart", "--recipe", str(tmp_path / "mine.yaml")], PlanningCLI)
    assert isinstance(cli.model, DistillModule)
    return cli.model


def test_the_pages_code_trains(module: DistillModule) -> None:
    assert module.objective.describe() == {"objective": "UnitGap", "weight": 0.5}
    module.configure_model()
    rollouts = sampled(module)
    for rollout in rollouts:
        tokens = module.pair.tokenize(rollout.response_ids, rollout.stopped)
        alignment = module.aligner.align(tokens)
        check_invariants(alignment, tokens, minimal=False)
        assert alignment.coverage == 1.0
        commas = alignment.text[:-1].count(b",")
        assert alignment.num_units == commas + 1 + alignment.has_stop
    loss, _ = module.loss_sum(rollouts, module.align(rollouts))
    loss.backward()
    assert loss.item() > 0
    assert any(float(weight.grad.abs().sum()) > 0 for weight in module.student.parameters() if weight.grad is not None)


def test_the_pages_objective_is_zero_for_one_model_on_both_sides(module: DistillModule) -> None:
    module.teacher_path = str(ASSETS / "student")
    module.configure_model()
    rollouts = sampled(module, num=2)
    loss, _ = module.loss_sum(rollouts, module.align(rollouts))
    torch.testing.assert_close(loss.detach(), torch.zeros_like(loss), atol=1e-6, rtol=0)
