"""A run that is cut off and goes on, against one that is left alone: same weights, same metrics, step for step."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers.logger import Logger

from callbacks import Checkpoint, CollapseGuard, LearningCurve
from simct_pl import DistillModule, PromptDataModule, PromptSource
from simct_pl.checkpointing.folder import CheckpointFolder, SavedCheckpoint
from simct_pl.errors import CheckpointError, PromptDataError, RecipeError, RunInterrupted
from simct_pl.training.optim import OptimizerConfig
from simct_pl.warmup import SFTModule
from tests.tiny import ASSETS, data, distill_module, trainer

NUM_STEPS = 7
BATCHES_A_PASS = 3


class Memory(Logger):
    """Keeps what is logged: (step, name) → values as text, so that NaN equals NaN."""

    def __init__(self) -> None:
        super().__init__()
        self.values: dict[tuple[int, str], list[str]] = {}

    name = version = "memory"

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        for name, value in metrics.items():
            self.values.setdefault((step or 0, name), []).append(repr(value))

    def log_hyperparams(self, *arguments: Any, **options: Any) -> None:
        pass


class Dice(L.Callback):
    """Draws from the generators that are nobody's own, as dropout would, and logs what came."""

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        drawn = {"torch": float(torch.rand(())), "python": random.random(), "numpy": float(np.random.rand())}
        indices = sum(prompt.index * 31**i for i, prompt in enumerate(batch.prompts)) % 10_007
        pl_module.log_dict({**drawn, "prompts": float(indices), "batch_idx": float(batch_idx)}, batch_size=1)


class At(L.Callback):
    """Does something at the end of a step."""

    def __init__(self, step: int, action: Any) -> None:
        self.step, self.action = step, action

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            self.action()


def prompts(folder: Path) -> PromptDataModule:
    """Twelve shuffled prompts: three batches a pass."""
    path = folder / "prompts.jsonl"
    if not path.exists():
        path.write_text("".join(json.dumps({"prompt": f"{i}+{i}+7?"}) + "\n" for i in range(1, 13)))
    return PromptDataModule(PromptSource(str(path)), batch_size=4, shuffle_buffer=5)


def fit(
    folder: Path,
    make: Callable[[Path], L.LightningDataModule],
    *callbacks: L.Callback,
    resume: SavedCheckpoint | None = None,
    memory: Memory | None = None,
) -> tuple[DistillModule, Memory, LearningCurve]:
    """A run of NUM_STEPS with every part that has a state. make: its data, from the folder that prompts are in."""
    L.seed_everything(1, verbose=False)
    memory = memory or Memory()
    curve, module = LearningCurve(str(folder / "curve.png")), distill_module()
    run = trainer(
        folder,
        Checkpoint(every_n_steps=1),
        Dice(),
        CollapseGuard(num_reference_steps=2),
        curve,
        *callbacks,
        max_steps=NUM_STEPS,
        logger=memory,
        log_every_n_steps=1,
        val_check_interval=2,
        check_val_every_n_epoch=None,
    )
    state = str(resume.state) if resume else None
    run.fit(module, datamodule=make(folder.parent), ckpt_path=state, weights_only=True)
    return module, memory, curve


def arithmetic(folder: Path) -> L.LightningDataModule:
    return data(num_train_batches=BATCHES_A_PASS)


def cut(*_: Any) -> None:
    raise KeyError("cut off")


def newest(folder: Path) -> SavedCheckpoint:
    found = CheckpointFolder(folder / "checkpoints").newest_good()
    assert found is not None
    return found


@pytest.mark.slow
@pytest.mark.parametrize("make", [arithmetic, prompts], ids=["arithmetic", "shuffled prompts"])
def test_a_run_goes_on_exactly_from_wherever_it_was_cut(
    tmp_path: Path, make: Callable[[Path], L.LightningDataModule]
) -> None:
    """Cut in every step, also in the last of a pass and in those with a validation: each life adds one step."""
    alone, killed, lives = tmp_path / "alone", tmp_path / "killed", Memory()
    module, memory, curve = fit(alone, make)
    resume = None
    for step in range(2, NUM_STEPS + 1):
        with pytest.raises(KeyError, match="cut off"):
            fit(killed, make, At(step, cut), resume=resume, memory=lives)
        resume = newest(killed)
        assert resume.manifest.step == step - 1
    last = fit(killed, make, resume=resume, memory=lives)
    for name, weight in module.student.state_dict().items():
        assert torch.equal(weight, last[0].student.state_dict()[name]), name
    assert last[0].history == module.history
    assert last[2].curves == curve.curves
    names = {name for _, name in memory.values}
    assert names >= {"torch", "python", "numpy", "prompts", "batch_idx", "loss/train", "optim/lr"}
    assert lives.values == memory.values  # of each step once, and the same


def test_supervised_runs_go_on_too(tmp_path: Path) -> None:
    """Another module: the same weights, optimizer and learning rates."""

    def supervised(name: str, *callbacks: L.Callback, resume: SavedCheckpoint | None = None) -> L.Trainer:
        run = trainer(tmp_path / name, callbacks=[Checkpoint(every_n_steps=1), *callbacks], max_steps=5)
        state = str(resume.state) if resume else None
        module = SFTModule(str(ASSETS / "student"), optimizer=OptimizerConfig(lr=1e-3))
        run.fit(module, datamodule=data(num_train_batches=3), ckpt_path=state, weights_only=True)
        return run

    alone = supervised("alone")
    with pytest.raises(KeyError):
        supervised("cut", At(4, cut))
    resumed = supervised("cut", resume=newest(tmp_path / "cut"))
    for first, second in zip(alone.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(first, second)
    assert (
        alone.lr_scheduler_configs[0].scheduler.state_dict() == resumed.lr_scheduler_configs[0].scheduler.state_dict()
    )


def test_a_sigterm_saves_between_two_steps_and_ends_the_run(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(RunInterrupted, match="ended after step 2; its last checkpoint is of step 2") as raised:
        fit(tmp_path, arithmetic, At(2, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    assert raised.value.exit_code == 75
    assert newest(tmp_path).manifest.step == 2
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.fixture
def file_size_limit() -> Iterator[Any]:
    """A function that lets files grow to 200 kB and no further, as a full disk would; a checkpoint has 2.5 MB."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_costs_checkpoints_and_not_the_run(tmp_path: Path, file_size_limit: Any) -> None:
    with pytest.warns(UserWarning, match=r"step 4 could not be saved .*last good checkpoint is of step 3") as seen:
        _, memory, _ = fit(tmp_path, arithmetic, At(4, file_size_limit))
    assert sum("could not be saved" in str(warning.message) for warning in seen) == NUM_STEPS - 3
    assert newest(tmp_path).manifest.step == 3
    failed = [memory.values[step, "checkpoint/failed_saves"] for step in range(NUM_STEPS)]
    assert failed == [["0.0"], ["0.0"], ["0.0"], ["0.0"], ["1.0"], ["2.0"], ["3.0"]]
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["step-00000002", "step-00000003"]


def test_a_checkpoint_is_plain_and_has_no_teacher(tmp_path: Path) -> None:
    fit(tmp_path, arithmetic)
    state = torch.load(newest(tmp_path).state, weights_only=True)
    assert all(name.startswith("student_with_loss.student.") for name in state["state_dict"])
    assert len(state["simct_pl"]["generators"]) == 1
    assert state["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["completed"] == NUM_STEPS
    assert state["ArithmeticDataModule"] == {"epoch": 2, "batch": 1, "num_batches": NUM_STEPS}


def test_a_prompt_file_that_changed_is_named(tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        fit(tmp_path / "run", prompts, At(2, cut))
    path = tmp_path / "prompts.jsonl"
    path.write_text(path.read_text().replace("7?", "8?"))
    with pytest.raises(PromptDataError, match=r"prompts\.jsonl.* is not the one"):
        fit(tmp_path / "run", prompts, resume=newest(tmp_path / "run"))


def test_values_out_of_range_are_refused() -> None:
    with pytest.raises(RecipeError, match="every_n_steps=0"):
        Checkpoint(every_n_steps=0)


def test_a_checkpoint_of_another_kind_is_refused(tmp_path: Path) -> None:
    module = distill_module()
    plain = trainer(tmp_path, max_steps=1)
    plain.fit(module, datamodule=data())
    plain.save_checkpoint(tmp_path / "plain.ckpt")
    with pytest.raises(CheckpointError, match="of no run with"):
        trainer(tmp_path, Checkpoint(), max_steps=2).fit(
            distill_module(), datamodule=data(), ckpt_path=str(tmp_path / "plain.ckpt"), weights_only=True
        )
