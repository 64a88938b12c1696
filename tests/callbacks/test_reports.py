"""What the callbacks report, against numbers worked out by hand."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import lightning as L
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger

from callbacks import (
    AlignmentStats,
    CollapseGuard,
    HFExport,
    LearningCurve,
    PolicyMismatch,
    RecipeLog,
    SampleTable,
    TimingCallback,
)
from callbacks.alignment_stats import alignment_metrics, anchor_metrics, unit_metrics
from callbacks.collapse_guard import RunningReference
from callbacks.learning_curve import draw_curves, limits
from callbacks.policy_mismatch import logprob_gap
from callbacks.sample_table import sample_rows
from simct_pl import SimCTLoss
from simct_pl.errors import CollapseError, ExportError, RecipeError
from simct_pl.evaluation.grader import Grader
from simct_pl.losses.base import Objective, UnitChunk, UnitLosses
from simct_pl.tracking.run_info import RunInfo
from simct_pl.training.unit_stats import StatsWriter
from simct_pl.types import LostReason, LostSpan, Prompt, PromptBatch, Rollout, StepRecord, UnitAlignment, UnitStats
from tests.tiny import data, distill_module, trainer

SHAPES, LENGTHS = ("1_1", "1_n", "n_1", "n_m"), ("1", "2", "3", "4_7", "8_up")


def record(
    losses: tuple[float, ...] = (1.0, 2.0, 0.5), length: int = 5, entropy: float = 1.0, drift: float = 0.0
) -> StepRecord:
    """One response: a 1:1 unit, a 2:1 unit, one lost student token of 3 bytes, and the stop.

    drift: nats by which the teacher likes it less.
    """
    alignment = UnitAlignment(
        units_U6=np.array([[0, 1, 0, 1, 0, 1], [1, 3, 1, 2, 1, 4], [4, 5, 3, 4, 7, 7]]),
        student_ids_S=np.arange(5),
        teacher_ids_T=np.arange(4),
        text=b"abcdxyz",
        has_stop=True,
        supervised_U=np.array([True, True, True]),
        lost=(LostSpan(LostReason.NORMALIZER, 3, 4, 2, 3, 4, 7),),
    )
    ids = [0, 1, 2, 3, 4] + [4] * (length - 5)
    rollout = Rollout(
        Prompt(0, ({"role": "user", "content": "q"},)), 0, [7], ids, [-0.5, -1.0, -1.5, -9.0, -0.1], "stop", 0, 0
    )
    stats = UnitStats(
        loss_U=torch.tensor(losses),
        supervised_U=torch.tensor([True, False, True]),
        student_logmass_U=torch.tensor([0.5, 1.0, 1.0]).log(),
        teacher_logmass_U=torch.tensor([0.25, 0.5, 0.75]).log(),
        student_entropy_U=torch.full((3,), entropy),
        student_stop_U=torch.tensor([0.0, 0.3, 0.9]),
        teacher_stop_U=torch.tensor([0.0, 0.0, 0.6]),
        teacher_logprobs_U=torch.tensor([-1.0, -3.0 - drift, -0.75]),
        anchor_U=torch.tensor([0.25, 0.5, 0.0]),
        token_logprobs_N=torch.tensor([-0.5, -1.25, -1.5, -0.5]),
    )
    return StepRecord([rollout], [alignment], [stats], sum(losses), 5)


def batch_of(step: StepRecord) -> PromptBatch:
    batch = PromptBatch([rollout.prompt for rollout in step.rollouts])
    batch.rollouts, batch.record = step.rollouts, step
    return batch


def test_alignment_metrics() -> None:
    assert alignment_metrics(record().alignments) == {
        "align/coverage": pytest.approx(4 / 5),
        "align/tokens_outside_1_1": pytest.approx(3 / 5),
        "align/multi_token_units": pytest.approx(1 / 3),
        **{f"align/units_{name}": pytest.approx(n / 3) for name, n in zip(SHAPES, (2, 0, 1, 0), strict=True)},
        **{f"align/length_{name}": pytest.approx(n / 3) for name, n in zip(LENGTHS, (2, 1, 0, 0, 0), strict=True)},
        "align/lost_bytes": 3.0,
        **{f"align/lost_{reason}": float(reason == LostReason.NORMALIZER) for reason in LostReason},
    }


def test_units_are_counted_by_shape_and_by_their_longer_side() -> None:
    """Student and teacher tokens: 1:1, 1:3, 4:1, 2:2, 7:8."""
    lengths = np.array([[1, 1], [1, 3], [4, 1], [2, 2], [7, 8]])
    ends = lengths.cumsum(0)
    units = np.stack([*(ends - lengths).T, *ends.T, np.arange(5), np.arange(1, 6)], 1)[:, [0, 2, 1, 3, 4, 5]]
    alignment = UnitAlignment(units, np.arange(15), np.arange(15), b"abcde", False, np.ones(5, bool))
    found = alignment_metrics([alignment])
    assert [5 * found[f"align/units_{name}"] for name in SHAPES] == pytest.approx([1, 1, 1, 2])
    assert [5 * found[f"align/length_{name}"] for name in LENGTHS] == pytest.approx([1, 1, 1, 1, 1])


def test_a_batch_without_units_reports_the_same_names() -> None:
    """Ranks average metric by metric, so one that logged fewer would hang the others."""
    full = record()
    nothing = UnitAlignment(
        np.empty((0, 6), np.int64), np.arange(5), np.arange(4), b"abcdxyz", False, np.empty(0, bool)
    )
    empty = StepRecord(full.rollouts, [nothing], [StatsWriter(0, 0, torch.zeros(())).stats], 0.0, 5)
    assert alignment_metrics([nothing]).keys() == alignment_metrics(full.alignments).keys()
    assert unit_metrics(empty) == dict.fromkeys(unit_metrics(full), 0.0)


def test_unit_metrics() -> None:
    assert unit_metrics(record()) == {
        "align/supervised_tokens": pytest.approx(2 / 5),
        "align/student_candidate_mass": pytest.approx(2.5 / 3),
        "align/teacher_candidate_mass": pytest.approx(0.5),
        "loss/shared_units": pytest.approx(1.5 / 5),
        "loss/span_units": pytest.approx(2.0 / 5),
        "policy/entropy": 1.0,
        "policy/stop_probability": pytest.approx(0.4),
        "policy/teacher_stop_probability": pytest.approx(0.2),
    }


def test_anchor_metrics() -> None:
    found = anchor_metrics(record(), weight=0.5)
    assert found == pytest.approx({"loss/anchor": 0.75 / 5, "policy/anchor_kl": 0.75 / 0.5 / 4})


def test_logprob_gap_skips_what_is_in_no_unit() -> None:
    assert logprob_gap(record()).tolist() == pytest.approx([0.0, 0.25, 0.0, 0.4])


def test_sample_rows_pair_texts_with_losses() -> None:
    (row,) = sample_rows(record(), 3)
    assert (row["prompt"], row["response"], row["finish_reason"], row["loss"]) == ("q", "abcdxyz", "stop", 3.5)
    assert row["unit_losses"] == ["'a' 1.000", "'bcd' 2.000", "'<stop>' 0.500"]


def steps(callback: Any, given: StepRecord, num: int) -> None:
    """The same step several times."""
    strategy = SimpleNamespace(reduce_boolean_decision=lambda decision, all: decision)
    fake = cast(Any, SimpleNamespace(global_step=1, is_global_zero=True, loggers=[], strategy=strategy))
    for _ in range(num):
        callback.on_train_batch_end(fake, cast(Any, None), None, batch_of(given), 0)


def test_the_guard_stops_on_length_entropy_and_nan() -> None:
    for bad, word in (
        (record(length=60), "as long"),
        (record(entropy=0.001), "entropy"),
        (record((math.nan,) * 3), "nan"),
        (record(drift=9.0), "leave the teacher's: text KL is 2.50 nats a byte"),
    ):
        guard = CollapseGuard("stop", num_reference_steps=2, smoothing=0.5)
        steps(guard, record(), 3)
        with pytest.raises(CollapseError, match=word):
            steps(guard, bad, 4)


def test_a_student_next_to_its_teacher_may_drift_by_a_multiple_of_nothing() -> None:
    """From .0025 nats a byte to .19, which is less than four times the floor; and a student that nears the teacher."""
    guard = CollapseGuard("stop", num_reference_steps=1, smoothing=0.0)
    steps(guard, record(drift=-0.99), 1)
    steps(guard, record(drift=-0.24), 2)
    steps(guard, record(drift=-30.0), 2)
    with pytest.raises(CollapseError, match="text KL"):
        steps(guard, record(drift=0.0), 1)


def test_a_checkpoint_from_before_text_kl_was_watched_is_read() -> None:
    guard, again = CollapseGuard(num_reference_steps=1), CollapseGuard(num_reference_steps=1)
    steps(guard, record(), 2)
    older = {name: value for name, value in guard.state_dict().items() if name != "text_kl"}
    again.load_state_dict(older)
    assert vars(again.length) == vars(guard.length)
    assert again.text_kl.first == []


def test_the_guard_warns_once_for_each_kind() -> None:
    guard = CollapseGuard("warn", num_reference_steps=1, smoothing=0.0)
    steps(guard, record(), 1)
    with pytest.warns(UserWarning, match="as long") as seen:
        steps(guard, record(length=60), 3)
    assert len(seen) == 1


def test_running_reference() -> None:
    reference = RunningReference(num_reference_steps=2, smoothing=0.5)
    assert [reference.update(v) for v in (1.0, 3.0, 2.0, 6.0)] == [1.0, 1.0, 1.0, 2.0]


def test_a_value_that_is_not_finite_does_not_blind_the_guard() -> None:
    reference = RunningReference(num_reference_steps=1, smoothing=0.5)
    assert [reference.update(v) for v in (math.nan, 2.0, math.nan, math.inf, 6.0)] == [1.0, 1.0, 1.0, 1.0, 2.0]


def test_guards_go_on_from_their_state() -> None:
    guard, again = (CollapseGuard("warn", num_reference_steps=1, smoothing=0.5) for _ in range(2))
    steps(guard, record(), 2)
    with pytest.warns(UserWarning, match="as long"):
        steps(guard, record(length=60), 3)
    again.load_state_dict(guard.state_dict())
    assert vars(again.length) == vars(guard.length)
    assert again.state_dict() == guard.state_dict()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        steps(again, record(length=60), 1)  # warned about before it was resumed


def test_a_skipped_step_names_its_prompts_and_leaves_no_trace(tmp_path: Path) -> None:
    """The third prompt's loss is NaN in the first step: nothing of it is in weights, optimizer, schedule or guard."""
    module, guard = distill_module(objective=NanInChunk(1)), CollapseGuard()
    before = {name: p.clone() for name, p in module.student.named_parameters()}

    class Check(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
            if module.guarded_step.num_skipped == 1 and trainer.global_step == 0:
                assert all(torch.equal(before[name], p) for name, p in module.student.named_parameters())
                assert not trainer.optimizers[0].state
                assert trainer.lr_scheduler_configs[0].scheduler.last_epoch == 0
                assert float(trainer.callback_metrics["optim/skipped_steps"]) == 1
                seen.append(trainer.global_step)

    seen: list[int] = []
    with pytest.warns(UserWarning, match=r"after step 0 was not taken, 1 so far.*The loss of prompts \[\d"):
        trainer(tmp_path, guard, Check(), max_steps=2).fit(module, datamodule=data())
    assert seen == [0]
    assert math.isfinite(guard.entropy.running)
    assert guard.entropy.running > 0
    assert all(torch.isfinite(p).all() for p in module.student.parameters())


class NanInChunk(Objective):
    """The paper's loss, but NaN in one chunk of units."""

    def __init__(self, chunk: int) -> None:
        self.chunk, self.calls, self.paper = chunk, 0, SimCTLoss()

    def __call__(self, chunk: UnitChunk) -> UnitLosses:
        self.calls += 1
        found = self.paper(chunk)
        loss_U = found.loss_U * math.nan if self.calls == self.chunk else found.loss_U
        return UnitLosses(loss_U, found.supervised_U, found.student_logmass_U, found.teacher_logmass_U)

    def describe(self) -> dict[str, object]:
        return {}


def test_an_export_over_the_models_of_the_run_is_refused_at_the_start(tmp_path: Path) -> None:
    module = distill_module()
    for output in (module.student_path, str(tmp_path)):
        (tmp_path / "mine").touch()
        with pytest.raises(ExportError):
            trainer(tmp_path, HFExport(output)).fit(module, datamodule=data())
    assert (tmp_path / "mine").exists()


def test_a_stop_that_is_not_graded_is_in_no_row() -> None:
    """Nor is its name given to the unit before it."""
    whole = record()
    cut = replace(whole.alignments[0], supervised_U=np.array([True, True, False]))
    stats = replace(whole.stats[0], loss_U=whole.stats[0].loss_U[:2])
    (row,) = sample_rows(replace(whole, alignments=[cut], stats=[stats]), 1)
    assert row["unit_losses"] == sample_rows(whole, 1)[0]["unit_losses"][:2]


def test_samples_come_every_so_many_steps_however_short_an_epoch_is(monkeypatch: pytest.MonkeyPatch) -> None:
    class Tracker:
        run_id = "r"

        def __init__(self) -> None:
            self.experiment, self.steps = self, list[int]()

        def log_table(self, run_id: str, columns: dict[str, Any], file: str) -> None:
            self.steps += columns["step"]

    tracker, table, module = Tracker(), SampleTable(every_n_steps=3), distill_module()
    monkeypatch.setattr("simct_pl.tracking.artifacts.MLFLOW_LOGGERS", (Tracker,))
    batch = PromptBatch([])
    batch.record = record()
    for step in range(1, 8):
        run = SimpleNamespace(global_step=step, is_global_zero=True, loggers=[tracker])
        table.on_train_batch_end(run, module, None, batch, (step - 1) % 2)  # type: ignore[arg-type]
    assert tracker.steps == [1, 4, 7]


def test_training_responses_are_graded_where_that_is_asked_for(tmp_path: Path) -> None:
    class HasTotal(Grader):
        def __call__(self, prompt: Prompt, response: str) -> float:
            seen.append((prompt.messages[-1]["content"], response))
            return float("total" in response)

    seen: list[tuple[str, str]] = []
    run = trainer(tmp_path, AlignmentStats(grade_responses=True), max_steps=1, limit_val_batches=0)
    run.fit(distill_module(grader=HasTotal()), datamodule=data())
    assert [question for question, _ in seen] == [
        p.messages[-1]["content"] for p in next(iter(data().train_dataloader())).prompts
    ]
    assert all(response.startswith(question.split("+")[0]) for question, response in seen)
    assert run.callback_metrics["rollout/accuracy"] == pytest.approx(
        sum("total" in text for _, text in seen) / len(seen)
    )


def test_responses_without_a_grader_are_refused(tmp_path: Path) -> None:
    run = trainer(tmp_path, AlignmentStats(grade_responses=True), max_steps=1, limit_val_batches=0)
    with pytest.raises(RecipeError, match="grade_responses of AlignmentStats is true, and the module has no grader"):
        run.fit(distill_module(), datamodule=data())


def test_every_callback_together_in_a_fit(tmp_path: Path) -> None:
    curve = LearningCurve(str(tmp_path / "curve.png"))
    reports = [AlignmentStats(), PolicyMismatch(), CollapseGuard("stop"), SampleTable(every_n_steps=1), curve]
    export = HFExport(str(tmp_path / "student"), every_n_steps=1)
    module = distill_module()
    run = trainer(tmp_path, *reports, export, max_steps=2, val_check_interval=1)
    run.fit(module, datamodule=data())
    assert {"align/coverage", "align/non_canonical", "policy/mismatch_p99", "loss/span_units"} <= set(
        run.callback_metrics
    )
    assert {f"{group}/text_kl{part}" for group in ("policy", "eval") for part in ("", "_error", "_coverage")} <= set(
        run.callback_metrics
    )
    assert [p for p, _ in curve.curves["eval/bits_per_byte"]] == [1, 2]
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == [
        "student",
        "student-step1",
        "student-step2",
    ]
    assert (tmp_path / "curve.png").stat().st_size > 10_000


def test_every_callback_with_a_logger_that_is_not_mlflow(tmp_path: Path) -> None:
    """Every step is in its file, and nothing asks it for what only MLflow has."""
    recipe_log, curve = RecipeLog(), LearningCurve(str(tmp_path / "curve.png"))
    recipe_log.run_info = RunInfo("r", "a: 1", {"torch": "0"}, None)
    reports = [AlignmentStats(), PolicyMismatch(), SampleTable(every_n_steps=1), TimingCallback(), recipe_log, curve]
    loggers = [CSVLogger(tmp_path, name="csv"), CSVLogger(tmp_path, name="again")]
    run = trainer(tmp_path, *reports, logger=loggers, max_steps=2, log_every_n_steps=1)
    run.fit(distill_module(), datamodule=data())
    for logger in loggers:
        rows = pd.read_csv(Path(logger.log_dir) / "metrics.csv")
        assert rows["loss/train"].notna().sum() == 2
        assert (Path(logger.log_dir) / "hparams.yaml").read_text().count("variant/aligner") == 1
    assert (tmp_path / "recipe.yaml").read_text() == "a: 1"


def test_a_validation_after_the_fit_is_in_the_curve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[dict[str, list[tuple[int, float]]]] = []
    monkeypatch.setattr(
        "callbacks.learning_curve.draw_curves",
        lambda curves, output, title: drawn.append({name: list(points) for name, points in curves.items()}),
    )
    curve, module = LearningCurve(str(tmp_path / "curve.png")), distill_module()
    run = trainer(tmp_path, curve, max_steps=2)
    run.validate(module, datamodule=data(), verbose=False)  # in front of the fit: nothing to draw yet
    assert drawn == []
    run.fit(module, datamodule=data())
    run.validate(module, datamodule=data(), verbose=False)
    assert [[step for step, _ in curves["eval/loss"]] for curves in drawn] == [[0], [0, 2]]


def test_the_axes_of_a_curve_that_hardly_moves_are_readable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Any] = []
    monkeypatch.setattr("matplotlib.pyplot.close", kept.append)
    draw_curves({"policy/entropy": [(step, 11.9 + 1e-6 * step) for step in (1, 2, 3)]}, tmp_path / "c.png", "flat")
    (axis,) = kept[0].axes
    monkeypatch.undo()
    plt.close(kept[0])
    low, high = axis.get_ylim()
    assert low < 11.8 < 12.0 < high
    assert axis.yaxis.get_offset_text().get_text() == ""
    assert {len(label.get_text()) for label in axis.get_yticklabels()} <= {4, 5}
    assert all(float(label.get_text()).is_integer() for label in axis.get_xticklabels())
    assert axis.lines[0].get_marker() == "o"


@pytest.mark.parametrize("values", [[0.0, 0.0], [math.nan, 1.0], [math.nan], [-3.0, 5.0], [1e-9, 2e-9]])
def test_limits_hold_every_value(values: list[float]) -> None:
    low, high = limits(values)
    assert low < high
    assert all(low < value < high for value in values if math.isfinite(value))


def test_curves_draw_what_there_is(tmp_path: Path) -> None:
    draw_curves({"loss/train": [(1, 0.5), (2, 0.25)]}, tmp_path / "deep" / "one.png", "one panel")
    assert (tmp_path / "deep" / "one.png").is_file()
