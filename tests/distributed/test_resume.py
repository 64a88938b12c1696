"""Two ranks with a sharded student, ended by SIGTERM between two steps and continued: exit code 75, and the same
weights as left alone.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from simct_pl.config.recipes import PACKAGE

SAVES = "trainer: {callbacks+: [{class_path: callbacks.Checkpoint, init_args: {every_n_steps: 4}}]}\n"
NUM_STEPS = 10
SHARDED = ("--recipe=fsdp2", "--trainer.accelerator=cpu", "--model.init_args.sharding.param_dtype=float32")


def start(folder: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    folder.mkdir(exist_ok=True)
    (folder / "saves.yaml").write_text(SAVES)
    command = [
        *(sys.executable, "-m", "simct_pl", "fit", "--recipe", "quickstart", "--recipe", "saves.yaml", "--resume"),
        *SHARDED,
        *("--trainer.logger=false", "--trainer.devices=2"),
        *(f"--trainer.max_steps={NUM_STEPS}", "--data.init_args.num_val_prompts=4"),
        *("--data.init_args.batch_size=4", "--data.init_args.num_train_batches=4"),
    ]
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    output, _ = process.communicate(timeout=300)
    return process.returncode, output


@pytest.mark.slow
def test_a_sigterm_to_one_rank_ends_both_and_the_run_goes_on_exactly(tmp_path: Path) -> None:
    alone, ended = tmp_path / "alone", tmp_path / "ended"
    code, output = finish(start(alone))
    assert code == 0, output[-3000:]
    process = start(ended)
    while process.poll() is None and not list(ended.glob("runs/quickstart+saves*/checkpoints/step-*")):
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    code, output = finish(process)
    assert code == 75, output[-3000:]
    assert "Continue it with --resume" in output
    code, output = finish(start(ended))
    assert code == 0, output[-3000:]
    assert "Continuing after step" in output
    first, second = (load_file(folder / "runs/quickstart/student/model.safetensors") for folder in (alone, ended))
    assert all((first[name] == second[name]).all() for name in first)
