"""A loss that is NaN on one rank alone: both ranks skip the step, count it, and stay equal."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from simct_pl.config.recipes import PACKAGE

PARTS = '''
import hashlib, json, math, os
from pathlib import Path
import lightning as L
from simct_pl import SimCTLoss
from simct_pl.losses.base import UnitLosses


class NanOnRankOne(SimCTLoss):
    """NaN in the second chunk of rank 1: the first is that of the held-out prompts."""

    calls = 0

    def __call__(self, chunk):
        self.calls += 1
        found = super().__call__(chunk)
        if self.calls != 2 or os.environ.get("LOCAL_RANK") != "1":
            return found
        return UnitLosses(found.loss_U * math.nan, found.supervised_U, found.student_logmass_U, found.teacher_logmass_U)


class Report(L.Callback):
    def on_train_end(self, trainer, module):
        weights = b"".join(p.detach().numpy().tobytes() for p in module.student.parameters())
        seen = {"skipped": module.guarded_step.num_skipped, "weights": hashlib.sha256(weights).hexdigest()}
        seen["finite"] = all(bool(p.isfinite().all()) for p in module.student.parameters())
        Path(f"rank{trainer.global_rank}.json").write_text(json.dumps(seen))
'''
OVERLAY = """
model: {init_args: {objective: {class_path: parts.NanOnRankOne}}}
trainer: {callbacks+: [parts.Report]}
"""


@pytest.mark.slow
def test_ranks_skip_together(tmp_path: Path) -> None:
    (tmp_path / "parts.py").write_text(PARTS)
    (tmp_path / "overlay.yaml").write_text(OVERLAY)
    environment = {**os.environ, "PYTHONPATH": f"{PACKAGE.parent}{os.pathsep}{tmp_path}"}
    command = [
        *(sys.executable, "-m", "simct_pl", "fit", "--recipe", "quickstart", "--recipe", "overlay.yaml"),
        *("--trainer.logger=false", "--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.max_steps=2"),
        *("--data.init_args.num_val_prompts=4", "--data.init_args.batch_size=4"),
    ]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2))
    assert first == second
    assert (first["skipped"], first["finite"]) == (1, True)
    assert "was not taken, 1 so far: its gradients are not finite. The loss of prompts [" in done.stderr
