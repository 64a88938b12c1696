"""docs/concepts.md holds a whole step as a program: it runs, and its first loss is that of the module."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
import torch

from simct_pl.types import Rollout
from tests.docs.pages import files_of
from tests.tiny import distill_module


def test_the_step_of_the_page_is_the_modules(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program = tmp_path / "step.py"
    program.write_text(files_of("concepts.md")["step.py"].replace("NUM_STEPS = 3", "NUM_STEPS = 1"), encoding="utf-8")
    found = runpy.run_path(str(program))
    [printed] = re.findall(r"step 0: (\d+\.\d+) a token over (\d+) units", capsys.readouterr().out)
    rollouts: list[Rollout] = found["rollouts"]
    module = distill_module()
    aligned = module.align(rollouts)
    with torch.no_grad():
        loss, _ = module.loss_sum(rollouts, aligned)
    num_tokens = sum(len(rollout.response_ids) for rollout in rollouts)
    assert int(printed[1]) == aligned.only.rows.num_units > 100
    assert float(printed[0]) == pytest.approx(float(loss) / num_tokens, rel=1e-3)
