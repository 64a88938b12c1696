"""Benchmarks inside a fit: what is logged, that training is none the wiser, and which checkpoint stays."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from callbacks import BenchmarkCallback, Checkpoint, HFExport
from simct_pl import DistillModule
from simct_pl.checkpointing.folder import CheckpointFolder, SavedCheckpoint
from simct_pl.errors import RecipeError
from simct_pl.evaluation.benchmark import Grade, Problem
from simct_pl.evaluation.runner import Protocol
from simct_pl.rollout.hf import HFEngine
from simct_pl.tasks.benchmark import ArithmeticBenchmark
from tests.callbacks.test_checkpoint import Memory
from tests.callbacks.test_reports import NanInChunk
from tests.tiny import data, distill_module, trainer

NUM_STEPS = 6


class Scripted(ArithmeticBenchmark):
    """Grades by a list: evaluation n of the run gives every response score n."""

    def __init__(self, scores: Sequence[float]) -> None:
        super().__init__(num_problems=2)
        self.scores, self.num_graded = scores, 0

    def grade(self, problem: Problem, response: str) -> Grade:
        self.num_graded += 1
        return Grade(self.scores[(self.num_graded - 1) // 2], "scripted")


def fit(
    folder: Path, *callbacks: L.Callback, resume: SavedCheckpoint | None = None, **options: Any
) -> tuple[DistillModule, Memory]:
    L.seed_everything(1, verbose=False)
    module, memory = distill_module(), Memory()
    arguments = {"max_steps": NUM_STEPS, "logger": memory, "log_every_n_steps": 1, "limit_val_batches": 0}
    run = trainer(folder, *callbacks, **{**arguments, **options})
    state = str(resume.state) if resume else None
    run.fit(module, datamodule=data(num_train_batches=NUM_STEPS), ckpt_path=state, weights_only=True)
    return module, memory


def logged(memory: Memory, name: str) -> dict[int, float]:
    return {step: float(values[0]) for (step, key), values in memory.values.items() if key == name}


def test_a_fit_is_scored_every_so_many_steps_and_trains_the_same(tmp_path: Path) -> None:
    benchmarks = BenchmarkCallback([ArithmeticBenchmark()], every_n_steps=3, protocol=Protocol(num_seeds=2, limit=8))
    module, memory = fit(tmp_path / "scored", benchmarks)
    accuracy = logged(memory, "eval/arithmetic/accuracy")
    assert len(accuracy) == 3  # before any step, and after 3 and 6
    for name in ("step-00000000", "step-00000003", "step-00000006"):
        folder = tmp_path / "scored/benchmarks" / name
        [summary] = json.loads((folder / "summary.json").read_text())
        assert (summary["num_problems"], summary["num_seeds"]) == (8, 2)
        assert len((folder / "arithmetic/items-0.jsonl").read_text().splitlines()) == 16
    assert list(accuracy.values())[-1] == pytest.approx(summary["accuracy"])
    alone, _ = fit(tmp_path / "alone")
    for name, weight in alone.student.state_dict().items():
        assert torch.equal(weight, module.student.state_dict()[name]), name


class ReadOnce(ArithmeticBenchmark):
    """Counts how often its problems are read, as from the hub."""

    def __init__(self) -> None:
        super().__init__(num_problems=2)
        self.num_read = 0

    def problems(self) -> list[Problem]:
        self.num_read += 1
        return super().problems()


def test_a_fit_reads_the_problems_once(tmp_path: Path) -> None:
    benchmark = ReadOnce()
    _, memory = fit(tmp_path, BenchmarkCallback([benchmark], every_n_steps=2, protocol=Protocol(num_seeds=1)))
    assert len(logged(memory, "eval/arithmetic/accuracy")) == 4
    assert benchmark.num_read == 1


def test_a_test_after_a_fit_scores_the_weights_that_are_there_now(tmp_path: Path) -> None:
    engine = HFEngine()
    benchmarks = BenchmarkCallback([ArithmeticBenchmark(2)], 3, Protocol(num_seeds=1), Protocol(num_seeds=1), engine)
    module, run = distill_module(), trainer(tmp_path, benchmarks, max_steps=3, limit_val_batches=0)
    run.fit(module, datamodule=data(num_train_batches=3))
    refreshed: list[int] = []
    engine.refresh = lambda model, version: refreshed.append(version)  # type: ignore[method-assign]
    run.test(module, dataloaders=DataLoader([0]))
    assert refreshed == [3]


def test_a_skipped_step_is_neither_scored_nor_exported_again(tmp_path: Path) -> None:
    benchmarks = BenchmarkCallback([ArithmeticBenchmark(2)], every_n_steps=1, protocol=Protocol(num_seeds=1))
    module, memory = distill_module(objective=NanInChunk(1)), Memory()
    export = HFExport(str(tmp_path / "student"), every_n_steps=1)
    run = trainer(tmp_path, benchmarks, export, max_steps=2, limit_val_batches=0, logger=memory, log_every_n_steps=1)
    run.fit(module, datamodule=data(num_train_batches=3))
    assert module.guarded_step.num_skipped == 1
    scored = [values for (_, key), values in memory.values.items() if key == "eval/arithmetic/accuracy"]
    assert [len(values) for values in scored] == [1, 1, 1]  # of steps 0, 1 and 2
    assert sorted(path.name for path in tmp_path.glob("student*")) == ["student", "student-step1", "student-step2"]


def test_a_callback_that_needs_distillation_says_so(tmp_path: Path) -> None:
    export = HFExport(str(tmp_path / "student"))
    with pytest.raises(RecipeError, match="HFExport needs a DistillModule; the recipe's model is LightningModule"):
        export.setup(trainer(tmp_path, export), L.LightningModule(), "fit")


@pytest.mark.parametrize(
    ("mode", "scores", "best"),
    [
        ("max", [0.2, 0.3, 0.9, 0.5, 0.4, 0.9, 0.8], 2),
        ("min", [0.2, 0.3, 0.9, 0.1, 0.4, 0.9, 0.8], 3),
        ("max", [0.9, 0.3, 0.4, 0.5, 0.4, 0.5, 0.0], None),  # never better than before the first step
        ("max", [0.1, 0.0, 0.0, 0.0, 0.0, 0.0, 0.5], 6),  # measured after the last step
        ("min", [0.5, 0.4, 0.3, 0.2, 0.1, 0.0, 0.3], 5),  # zero is a score
    ],
)
def test_the_best_checkpoint_stays_beside_the_last(
    tmp_path: Path, mode: str, scores: list[float], best: int | None
) -> None:
    benchmarks = BenchmarkCallback([Scripted(scores)], every_n_steps=1, protocol=Protocol(num_seeds=1))
    keeper = Checkpoint(every_n_steps=100, keep_last=1, best_metric="eval/arithmetic/accuracy", best_mode=mode)  # type: ignore[arg-type]
    fit(tmp_path, keeper, benchmarks)
    folder = CheckpointFolder(tmp_path / "checkpoints", keep_last=1, best=mode)  # type: ignore[arg-type]
    assert folder.steps() == sorted({NUM_STEPS, best or NUM_STEPS})
    assert folder.best_step() == best
    if best is not None:
        manifest = SavedCheckpoint.read(folder.of_step(best)).manifest
        assert (manifest.metric, manifest.score) == ("eval/arithmetic/accuracy", pytest.approx(scores[best]))


def test_a_resumed_run_remembers_the_best(tmp_path: Path) -> None:
    def keeper() -> Checkpoint:
        return Checkpoint(every_n_steps=100, keep_last=1, best_metric="eval/arithmetic/accuracy")

    first = BenchmarkCallback([Scripted([0.1, 0.8, 0.2, 0.3])], every_n_steps=1, protocol=Protocol(num_seeds=1))
    fit(tmp_path, keeper(), first, max_steps=3)
    folder = CheckpointFolder(tmp_path / "checkpoints", keep_last=1, best="max")
    assert folder.steps() == [1, 3]
    second = BenchmarkCallback([Scripted([0.7, 0.6, 0.5])], every_n_steps=1, protocol=Protocol(num_seeds=1))
    fit(tmp_path, keeper(), second, resume=folder.newest_good())
    assert folder.steps() == [1, NUM_STEPS]
    assert folder.best_step() == 1


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(RecipeError, match="at least one"):
        BenchmarkCallback([])
    with pytest.raises(RecipeError, match="none twice"):
        BenchmarkCallback([ArithmeticBenchmark(), ArithmeticBenchmark()])
    with pytest.raises(RecipeError, match="every_n_steps is 0"):
        BenchmarkCallback([ArithmeticBenchmark()], every_n_steps=0)
