"""A share of the prompts that the teacher answers: who is drawn, what it leaves alone, and what is said about whom."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest

from callbacks import AlignmentStats, CollapseGuard, PolicyMismatch, RolloutCallback, TeacherRollout
from callbacks.sample_table import sample_rows
from simct_pl import DPCALoss, SimCTLoss
from simct_pl.errors import PromptDataError, RecipeError
from simct_pl.evaluation.grader import Grader
from simct_pl.losses.mixture import MixtureLoss, Weighted
from simct_pl.models.sharding import Sharding
from simct_pl.rollout.engine import SamplingParams
from simct_pl.training.module import DistillModule
from simct_pl.training.text_kl import TextKL, text_kl_sums
from simct_pl.types import Prompt, PromptBatch, Rollout
from tests.tiny import data, distill_module, trainer, unloaded_module

SAMPLING = SamplingParams(max_tokens=20)
PROMPTS = [Prompt(i, ({"role": "user", "content": f"{i + 1}+{2 * i + 1}?"},)) for i in range(12)]


def answered(module: DistillModule, prompts: list[Prompt], step: int = 3, **overrides: Any) -> list[Rollout]:
    """What a callback of its own, as another rank or a resumed run has, writes into a batch of these prompts."""
    callback = RolloutCallback(**{"sampling": SAMPLING, "seed": 5, **overrides})
    batch = PromptBatch(prompts)
    callback.on_train_batch_start(SimpleNamespace(global_step=step), module, batch, 0)  # type: ignore[arg-type]
    assert batch.rollouts is not None
    return batch.rollouts


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> DistillModule:
    module = distill_module()
    monkeypatch.setattr(module, "log", lambda *_, **__: None)
    return module


def plain(rollouts: list[Rollout]) -> list[tuple[Any, ...]]:
    return [(r.prompt.index, r.sample_index, r.author, r.response_ids, r.seed) for r in rollouts]


def test_who_answers_depends_on_seed_step_and_prompt_alone(module: DistillModule) -> None:
    """Neither on the batch, and so on ranks, nor on what was asked before, and so on a resume."""
    whole = plain(answered(module, PROMPTS, teacher_share=0.5))
    parts = [plain(answered(module, part, teacher_share=0.5)) for part in (PROMPTS[7:], PROMPTS[:3], PROMPTS[3:7])]
    assert sorted(one for part in parts for one in part) == whole
    assert {author for _, _, author, *_ in whole} == {"student", "teacher"}
    authors = [[one[2] for one in whole]]
    authors += [[r.author for r in answered(module, PROMPTS, step, teacher_share=0.5)] for step in (4, 5)]
    authors += [[r.author for r in answered(module, PROMPTS, teacher_share=0.5, seed=6)]]
    assert len({tuple(one) for one in authors}) == 4, "each step and each seed draws anew"


def test_each_half_answers_as_it_would_answer_all(module: DistillModule) -> None:
    greedy = SamplingParams(temperature=0.0, max_tokens=24)
    mixed = answered(module, PROMPTS, teacher_share=0.5, num_samples=2, teacher_sampling=greedy)
    students = answered(module, PROMPTS, num_samples=2)
    teachers = answered(module, PROMPTS, num_samples=2, teacher_share=1.0, sampling=greedy)
    for one, own, other in zip(plain(mixed), plain(students), plain(teachers), strict=True):
        assert one in (own, other)
    assert [r.prompt.index for r in mixed] == [i for i in range(12) for _ in range(2)]
    for rollout in mixed:
        assert math.isnan(rollout.engine_logprobs[0]) == (rollout.author == "teacher")
    by_prompt = [{r.author for r in mixed if r.prompt.index == i} for i in range(12)]
    assert all(len(authors) == 1 for authors in by_prompt), "all samples of a prompt are by one author"


def test_the_share_is_what_was_asked_for() -> None:
    callback = RolloutCallback(seed=0, teacher_share=0.3)
    drawn = [callback._asks_teacher(step, prompt) for step in range(500) for prompt in PROMPTS]
    assert sum(drawn) / len(drawn) == pytest.approx(0.3, abs=4 * math.sqrt(0.21 / len(drawn)))
    for share in (0.0, 1.0):
        callback = RolloutCallback(seed=0, teacher_share=share)
        assert {callback._asks_teacher(0, prompt) for prompt in PROMPTS} == {share == 1}


class Keep(L.Callback):
    """The batch and the metrics of each step."""

    def __init__(self) -> None:
        self.steps: list[tuple[PromptBatch, dict[str, float]]] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.steps.append((batch, {name: float(value) for name, value in trainer.callback_metrics.items()}))


class LongOnes(Grader):
    def __call__(self, prompt: Prompt, response: str) -> float:
        return float(len(response) > 12)


def test_what_is_said_of_the_policy_is_said_of_its_own_responses(tmp_path: Path) -> None:
    kept, guard = Keep(), CollapseGuard()
    mixed = RolloutCallback(SAMPLING, seed=1, teacher_share=0.5, teacher_sampling=SamplingParams(0.0, max_tokens=40))
    run = trainer(
        tmp_path,
        callbacks=[mixed, AlignmentStats(grade_responses=True), PolicyMismatch(), guard, kept],
        max_steps=2,
        limit_val_batches=0,
    )
    run.fit(distill_module(grader=LongOnes()), datamodule=data(batch_size=8))
    lengths = []
    for batch, metrics in kept.steps:
        assert batch.record is not None
        own = [i for i, r in enumerate(batch.record.rollouts) if r.author == "student"]
        assert 0 < len(own) < 8
        rollouts, alignments, stats = (
            [getattr(batch.record, name)[i] for i in own] for name in ("rollouts", "alignments", "stats")
        )
        lengths.append(sum(len(r.response_ids) for r in rollouts) / len(own))
        texts = [alignment.text.decode(errors="replace") for alignment in alignments]
        expected = {
            "rollout/teacher_share": 1 - len(own) / 8,
            "rollout/response_tokens": lengths[-1],
            "rollout/truncation_rate": sum(not r.stopped for r in rollouts) / len(own),
            "rollout/accuracy": sum(len(text) > 12 for text in texts) / len(own),
            "policy/text_kl": TextKL.of(text_kl_sums(alignments, stats)).nats_per_byte,
        }
        assert {name: metrics[name] for name in expected} == pytest.approx(expected)
        assert metrics["policy/mismatch_p99"] < 1e-4
        assert metrics["policy/lag"] == 0
    assert guard.length.first == pytest.approx(lengths)
    record = kept.steps[0][0].record
    assert record is not None
    assert [row["author"] for row in sample_rows(record, 8)] == [r.author for r in record.rollouts]


def test_without_responses_of_its_own_nothing_is_said_of_it(tmp_path: Path) -> None:
    callbacks = [TeacherRollout(SAMPLING), AlignmentStats(), PolicyMismatch(), CollapseGuard("stop")]
    run = trainer(tmp_path, callbacks=callbacks, max_steps=1, limit_val_batches=0)
    run.fit(distill_module(), datamodule=data())
    assert run.callback_metrics["rollout/teacher_share"] == 1
    assert not {"policy/text_kl", "rollout/response_tokens", "policy/mismatch_mean"} & set(run.callback_metrics)
    assert {"loss/train", "align/coverage", "loss/span_units"} <= set(run.callback_metrics)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"teacher_share": 1.5}, r"teacher_share is 1\.5.*between 0"),
        ({"teacher_share": -0.1}, r"teacher_share is -0\.1"),
        ({"teacher_sampling": SAMPLING}, "Set teacher_share, or leave teacher_sampling out"),
    ],
)
def test_a_share_that_means_nothing_is_refused(arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(RecipeError, match=named):
        RolloutCallback(**arguments)


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        ({"sharding": Sharding(shard_teacher=True)}, "set sharding.shard_teacher to false"),
        ({"objective": DPCALoss()}, "DPCALoss takes every response for the student's own sample.*teacher_share=0.5"),
        ({"objective": MixtureLoss([Weighted(SimCTLoss()), Weighted(DPCALoss())])}, "MixtureLoss takes every response"),
    ],
    ids=["sharded teacher", "policy gradient", "a part of a mixture"],
)
def test_what_it_cannot_be_combined_with_is_refused(tmp_path: Path, overrides: dict[str, Any], named: str) -> None:
    module = unloaded_module(**overrides)
    with pytest.raises(RecipeError, match=named):
        RolloutCallback(teacher_share=0.5).setup(trainer(tmp_path), module, "fit")
    if "sharding" not in overrides:
        RolloutCallback().setup(trainer(tmp_path), module, "fit")


def test_a_teacher_without_room_to_answer_is_refused() -> None:
    module = unloaded_module()
    module.first_lesson.__dict__["context"] = len(module.pair.teacher.render_prompt(PROMPTS[0].messages)) + 19
    RolloutCallback(SAMPLING)._check_teacher(module, PROMPTS[0])  # it only reads, as much as there is room for
    with pytest.raises(PromptDataError, match=r"Prompt 0: .*max_tokens=20 exceed the teacher's context"):
        RolloutCallback(SAMPLING, teacher_share=0.5)._check_teacher(module, PROMPTS[0])
