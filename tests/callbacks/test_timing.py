"""Timing: what a step counts and what it does not, the names, the sums, and the table."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from rich.console import Console

from callbacks import TimingCallback
from callbacks.timing import peak_memory_bytes
from simct_pl.training.step_timer import PHASES, Lap
from simct_pl.types import PromptBatch
from tests.tiny import data, distill_module, trainer

NAMES = {
    *(f"timing/seconds/{phase}" for phase in PHASES),
    *(f"timing/share/{phase}" for phase in PHASES),
    "timing/step_seconds",
    "timing/tokens_per_second",
    "timing/alignment_worker_seconds",
    "timing/peak_memory_gib",
    "timing/padding_share_student",
    "timing/padding_share_teacher",
}


class Keep(L.Callback):
    """The timing metrics and the batch of each step."""

    def __init__(self) -> None:
        self.metrics: list[dict[str, float]] = []
        self.batches: list[PromptBatch] = []

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: PromptBatch, batch_idx: int
    ) -> None:
        found = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("timing/")}
        self.metrics.append(found)
        self.batches.append(batch)


def test_every_step_logs_the_same_names_and_the_phases_add_up(tmp_path: Path) -> None:
    keep, module = Keep(), distill_module(micro_batch_tokens=100_000, teacher_batch_tokens=100_000)
    trainer(tmp_path, TimingCallback(), keep, max_steps=3, val_check_interval=2).fit(module, datamodule=data())
    assert len(keep.metrics) == 3
    for metrics, batch in zip(keep.metrics, keep.batches, strict=True):
        assert metrics.keys() == NAMES
        assert sum(metrics[f"timing/share/{phase}"] for phase in PHASES) == pytest.approx(1)
        seconds = {phase: metrics[f"timing/seconds/{phase}"] for phase in PHASES}
        assert sum(seconds.values()) == pytest.approx(metrics["timing/step_seconds"])
        for phase in set(PHASES) - {"refresh", "alignment"}:
            assert seconds[phase] > 0, phase
        assert batch.record is not None
        per_second = batch.record.num_global_tokens / metrics["timing/step_seconds"]
        assert metrics["timing/tokens_per_second"] == pytest.approx(per_second)
        assert batch.rollouts is not None
        lengths = [len(rollout.prompt_ids) + len(rollout.response_ids) for rollout in batch.rollouts]
        padding = 1 - sum(lengths) / (max(lengths) * len(lengths))
        assert metrics["timing/padding_share_student"] == pytest.approx(padding, abs=1e-6)
        assert metrics["timing/alignment_worker_seconds"] > 0
        assert 0.1 < metrics["timing/peak_memory_gib"] < 100


def test_validation_is_in_no_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that only these callbacks move: 100 s a validation, 1 s before each step, 2 s after it."""
    hands = SimpleNamespace(now=0.0)
    monkeypatch.setattr("simct_pl.training.step_timer.perf_counter", lambda: hands.now)

    class Tick(L.Callback):
        def on_validation_batch_start(self, *_: Any) -> None:
            hands.now += 100

        def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
            with pl_module.phases("rollout"):
                hands.now += 1

        def on_train_batch_end(self, *_: Any) -> None:
            hands.now += 2

    keep, timing = Keep(), TimingCallback()
    run = trainer(tmp_path, timing, Tick(), keep, max_steps=3, val_check_interval=1, num_sanity_val_steps=1)
    run.fit(distill_module(), datamodule=data())
    assert hands.now > 300
    assert [metrics["timing/step_seconds"] for metrics in keep.metrics] == [1, 3, 3]
    assert timing.total is not None
    assert {phase: seconds for phase, seconds in timing.total.seconds.items() if seconds} == {"rollout": 3, "other": 4}


def test_a_second_fit_starts_anew(tmp_path: Path) -> None:
    timing, module = TimingCallback(), distill_module()
    for _ in range(2):
        trainer(tmp_path, timing, max_steps=1).fit(module, datamodule=data())
    assert timing.num_steps == 1


def test_nobody_listens_after_a_fit_however_it_ends(tmp_path: Path) -> None:
    class Fail(L.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            raise RuntimeError("the disk is full")

    timing, module = TimingCallback(), distill_module()
    trainer(tmp_path, timing, max_steps=1).fit(module, datamodule=data())
    assert not module.phases.is_listening
    with pytest.raises(RuntimeError, match="disk is full"):
        trainer(tmp_path, timing, Fail(), max_steps=1).fit(module, datamodule=data())
    assert not module.phases.is_listening


def test_the_table_shows_every_phase_and_its_share(capsys: pytest.CaptureFixture[str]) -> None:
    timing = TimingCallback()
    timing.num_steps, timing.num_response_tokens, timing.peak_memory_gib = 4, 1000, 1.25
    seconds = {**dict.fromkeys(PHASES, 0.0), "rollout": 6.0, "teacher": 2.0}
    total = Lap(seconds, 0.5, Counter(student=75, teacher=90), Counter(student=100, teacher=100))
    Console(width=100).print(timing.table(total))
    shown = capsys.readouterr().out
    rows = {cells[1]: (cells[3], cells[5]) for line in shown.splitlines() if (cells := line.split())[0] == "│"}
    assert rows["rollout"] == ("1.500", "75.0%")
    assert rows["teacher"] == ("0.500", "25.0%")
    assert rows["step"] == ("2.000", "100.0%")
    assert rows.keys() == {*PHASES, "step"}
    for said in (
        "4 training steps",
        "125 response tokens a second",
        "1.2 GiB",
        "student 25.0%, teacher 10.0%",
        "0.125",
    ):
        assert said in shown


def test_peak_memory_of_a_cuda_device_is_that_of_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    resets: list[torch.device] = []
    monkeypatch.setattr("torch.cuda.max_memory_allocated", lambda device: 7 * 2**30)
    monkeypatch.setattr("torch.cuda.reset_peak_memory_stats", resets.append)
    device = torch.device("cuda", 0)
    assert peak_memory_bytes(device) == 7 * 2**30
    assert resets == [device]
