"""Several teachers against modules with one teacher each: the same losses, gradients and metrics, weighted."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from callbacks import AlignmentStats, RolloutCallback, SpanGradients, TeacherRollout
from callbacks.span_gradients import gradients_by_kind
from simct_pl import PromptDataModule, PromptSource, SimCTLoss, TokenConditionalLoss
from simct_pl.errors import PromptDataError, RecipeError
from simct_pl.losses.dskd import DSKDCma
from simct_pl.rollout.engine import SamplingParams
from simct_pl.tasks.arithmetic import TotalGrader
from simct_pl.training.chat import ChatSettings
from simct_pl.training.lesson import TeacherSettings
from simct_pl.training.module import DistillModule
from simct_pl.types import PromptBatch, Rollout
from tests.tiny import ASSETS, distill_module, sampled, trainer, unloaded_module

PATHS = {"digits": str(ASSETS / "teacher"), "pairs": str(ASSETS / "two_digit_teacher")}
NAMES = [*PATHS]


def settings(**weights: float) -> dict[str, TeacherSettings]:
    return {name: TeacherSettings(path, weights.get(name, 1.0)) for name, path in PATHS.items()}


def prepared(module: DistillModule) -> DistillModule:
    """What setup does for its objectives."""
    for lesson in module.lessons.values():
        lesson.objective.prepare(lesson.pair)
    return module


def taught_by_both(**overrides: Any) -> DistillModule:
    return prepared(distill_module(**{"teacher": None, "teachers": settings(), **overrides}))


def named(rollouts: Sequence[Rollout], teachers: Sequence[str | None]) -> list[Rollout]:
    """The responses, with who grades each."""
    return [
        replace(rollout, prompt=replace(rollout.prompt, teacher=teacher))
        for rollout, teacher in zip(rollouts, teachers, strict=True)
    ]


def loss_and_gradients(module: DistillModule, rollouts: Sequence[Rollout]) -> tuple[float, list[Tensor]]:
    parameters = [p for p in module.student.parameters() if p.requires_grad]
    loss, _ = module.loss_sum(rollouts, module.align(rollouts))
    return loss.item(), list(torch.autograd.grad(loss, parameters))


def expected_sum(
    parts: Sequence[tuple[float, DistillModule, Sequence[Rollout]]],
) -> tuple[float, list[Tensor]]:
    """Of modules with one teacher: weighted losses and gradients, added up."""
    total, gradients = 0.0, list[Tensor]()
    for weight, module, rollouts in parts:
        loss, found = loss_and_gradients(module, rollouts)
        total += weight * loss
        gradients = (
            [weight * g for g in found]
            if not gradients
            else [a + weight * g for a, g in zip(gradients, found, strict=True)]
        )
    return total, gradients


def assert_same(found: tuple[float, list[Tensor]], expected: tuple[float, list[Tensor]]) -> None:
    assert found[0] == pytest.approx(expected[0], rel=1e-5)
    for one, other in zip(found[1], expected[1], strict=True):
        assert (one - other).norm() <= 1e-4 * other.norm() + 1e-7


@pytest.mark.parametrize("objective", [SimCTLoss("sum_logprob", "marginal"), TokenConditionalLoss("jsd")])
@pytest.mark.parametrize(
    "teachers", [[None] * 6, ["digits", "pairs"] * 3, ["pairs"] * 6, ["digits", None, "pairs", None, None, "pairs"]]
)
def test_each_teacher_counts_as_it_would_alone(objective: Any, teachers: list[str | None]) -> None:
    """Weights 1 and 3: a response that both grade counts a quarter and three quarters; one that names its teacher,
    whole.
    """
    both = taught_by_both(teachers=settings(pairs=3.0), objective=objective)
    alone = {
        name: prepared(distill_module(teacher=path, objective=type(objective)(*_arguments(objective))))
        for name, path in PATHS.items()
    }
    rollouts = named(sampled(both), teachers)
    parts = []
    for name, share in (("digits", 0.25), ("pairs", 0.75)):
        for weight, wanted in ((share, None), (1.0, name)):
            own = [rollout for rollout in rollouts if rollout.prompt.teacher == wanted]
            if own:
                parts.append((weight, alone[name], [replace(r, prompt=replace(r.prompt, teacher=None)) for r in own]))
    assert_same(loss_and_gradients(both, rollouts), expected_sum(parts))


def _arguments(objective: Any) -> tuple[str, ...]:
    return ("sum_logprob", "marginal") if isinstance(objective, SimCTLoss) else ("jsd",)


def test_the_only_teacher_may_be_named() -> None:
    """As "teacher": rows that say so are graded, and not left out."""
    module = distill_module()
    rollouts = sampled(module)
    expected = loss_and_gradients(module, rollouts)
    assert_same(loss_and_gradients(module, named(rollouts, ["teacher", None] * 3)), expected)
    with pytest.raises(PromptDataError, match="names teacher 'digits'; the recipe's are 'teacher'"):
        module.align(named(rollouts, ["digits"] * 6))


def test_copies_of_the_objective_are_prepared_for_their_own_pair() -> None:
    both = taught_by_both(objective=TokenConditionalLoss("jsd"))
    first, second = (lesson.objective for lesson in both.lessons.values())
    assert first is not second
    assert first.path_builder is not second.path_builder
    assert unloaded_module(objective=first).objective is first  # of a single teacher: the recipe's own


def test_projectors_of_each_pair_are_their_own() -> None:
    """`cma` trains projectors between the student and each teacher."""
    both = taught_by_both(objective=DSKDCma())
    weights = {name: p for name, p in both.student_with_loss.named_parameters() if "projectors" in name}
    assert {name.split(".projectors.")[0] for name in weights} == {"losses.0", "losses.1"}
    loss, _ = both.loss_sum(rollouts := named(sampled(both), ["digits"] * 6), both.align(rollouts))
    loss.backward()  # those of a teacher with nothing to grade are in the graph: DDP waits for every gradient
    assert all(parameter.grad is not None for parameter in weights.values())
    assert all(not p.grad.any() for name, p in weights.items() if name.startswith("losses.1"))  # type: ignore[union-attr]


def test_span_gradients_add_up_over_teachers() -> None:
    both = taught_by_both(teachers=settings(pairs=3.0))
    rollouts = named(sampled(both), [None, "digits", "pairs"] * 2)
    shared, others = gradients_by_kind(both, rollouts)
    _, whole = loss_and_gradients(both, rollouts)
    for one, other, sum_of_both in zip(shared, others, whole, strict=True):
        assert (one + other - sum_of_both).norm() <= 1e-4 * sum_of_both.norm() + 1e-7


# ---- a run ----


def rows(folder: Path, *teachers: str) -> PromptDataModule:
    """Rows that name their teachers, one after the other."""
    path = folder / "rows.jsonl"
    lines = [
        {"prompt": f"{i + 3}+{2 * i}+7?", "total": str(3 * i + 10), "by": teachers[i % len(teachers)]}
        for i in range(12)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    source = PromptSource(str(path), answer_field="total", teacher_name_field="by")
    return PromptDataModule(source, replace(source, limit=4), batch_size=4, val_batch_size=4, shuffle_buffer=0)


class Seen(AlignmentStats):
    """Keeps the steps' records and metrics."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[Any] = []
        self.metrics: list[dict[str, float]] = []

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: PromptBatch, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        self.records.append(batch.record)
        self.metrics.append({name: float(value) for name, value in trainer.callback_metrics.items()})


def test_rows_name_their_teacher_and_metrics_name_it_too(tmp_path: Path) -> None:
    module = unloaded_module(teacher=None, teachers=settings(), grader=TotalGrader(), micro_batch_tokens=80)
    seen = Seen()
    run = trainer(tmp_path, seen, max_steps=3)  # an epoch, and a validation
    run.fit(module, datamodule=rows(tmp_path, "digits", "digits", "digits", "pairs"))
    for record in seen.records:
        assert record.teachers == ["digits", "digits", "digits", "pairs"]
        assert [rollout.prompt.teacher for rollout in record.rollouts] == record.teachers
        # Its own tokens: that of the pairs has fewer.
        ids = [alignment.teacher_ids_T.tolist() for alignment in record.alignments]
        for rollout, alignment, found in zip(record.rollouts, record.alignments, ids, strict=True):
            pair = module.lessons[str(rollout.prompt.teacher)].pair
            assert pair.teacher.response_bytes(found) == alignment.text
    metrics = seen.metrics[0]
    assert (metrics["teacher/digits/share"], metrics["teacher/pairs/share"]) == (0.75, 0.25)
    record = seen.records[0]
    losses = dict.fromkeys(NAMES, 0.0)
    for teacher, stats in zip(record.teachers, record.stats, strict=True):
        losses[teacher] += float(stats.loss_U.double().sum())
    assert record.loss_sum == pytest.approx(sum(losses.values()), rel=1e-5)
    tokens = {name: sum(r.num_targets for r in record.rollouts if r.prompt.teacher == name) for name in NAMES}
    for name in NAMES:
        assert metrics[f"teacher/{name}/loss"] == pytest.approx(losses[name] / tokens[name], rel=1e-5)
    held_out = module.history[-1].metrics
    assert {"eval/accuracy", "eval/digits/accuracy", "eval/pairs/text_kl", "eval/pairs/loss"} <= held_out.keys()
    assert held_out["eval/accuracy"] == pytest.approx(
        0.75 * held_out["eval/digits/accuracy"] + 0.25 * held_out["eval/pairs/accuracy"]
    )


def test_where_all_grade_every_response_is_there_once_a_teacher(tmp_path: Path) -> None:
    module = unloaded_module(teacher=None, teachers=settings(pairs=3.0), micro_batch_tokens=80)
    seen, data = Seen(), rows(tmp_path, "digits")
    data.train = replace(data.train, teacher_name_field=None)
    data.val = None
    trainer(tmp_path, seen).fit(module, datamodule=data)
    record = seen.records[0]
    assert record.teachers == NAMES * 4
    assert len({id(rollout) for rollout in record.rollouts}) == 4
    expected = sum(
        {"digits": 0.25, "pairs": 0.75}[teacher] * float(stats.loss_U.double().sum())
        for teacher, stats in zip(record.teachers, record.stats, strict=True)
    )
    assert record.loss_sum == pytest.approx(expected, rel=1e-5)
    assert seen.metrics[0]["rollout/response_tokens"] == pytest.approx(record.num_global_tokens / 4)


def test_the_teacher_that_a_row_names_answers_it(tmp_path: Path) -> None:
    """Each would answer alike: what tells them apart is who was asked, in which tokens."""
    module = unloaded_module(teacher=None, teachers=settings())
    asked: dict[str, int] = {}
    seen = Seen()
    answers = TeacherRollout(SamplingParams(temperature=0.0, max_tokens=30))
    run = trainer(tmp_path, callbacks=[answers, seen], max_steps=1)
    module.configure_model()
    for name in NAMES:
        model = module.student_with_loss.loss_of(name).teacher.model  # type: ignore[union-attr]
        model.register_forward_pre_hook(lambda *_, name=name: asked.update({name: asked.get(name, 0) + 1}))
    run.fit(module, datamodule=rows(tmp_path, "pairs"))
    by_pairs = asked["pairs"]
    # The other is asked for rows of no response alone.
    assert by_pairs > 10 > asked.get("digits", 0)
    assert all(rollout.author == "teacher" for rollout in seen.records[0].rollouts)


# ---- refusals, before any weights load ----


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"teacher": None}, "teacher is None and teachers are []"),
        ({"teachers": settings()}, "expected one model folder in teacher"),
        ({"teacher": None, "teachers": {}}, "teacher is None"),
        ({"teacher": None, "teachers": settings(), "teacher_kwargs": {"a": 1}}, "teacher_kwargs belong to a single"),
        (
            {"teacher": None, "teachers": settings(), "chat": ChatSettings(teacher={"enable_thinking": False})},
            "chat.teacher belong to a single",
        ),
        ({"teacher": None, "teachers": {"a/b": TeacherSettings("x")}}, "called 'a/b'"),
        ({"teacher": None, "teachers": {"student": TeacherSettings("x")}}, "called 'student'"),
    ],
)
def test_teachers_that_cannot_be_are_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(words)):
        unloaded_module(**values)


@pytest.mark.parametrize("weight", [0.0, -1.0, float("inf"), float("nan")])
def test_a_weight_that_weighs_nothing_is_refused(weight: float) -> None:
    with pytest.raises(RecipeError, match="weight of teacher 'x'"):
        TeacherSettings("x", weight)


def test_a_row_of_an_unknown_teacher_is_refused(tmp_path: Path) -> None:
    module = unloaded_module(teacher=None, teachers=settings())
    with pytest.raises(PromptDataError, match="names teacher 'nobody'; the recipe's are 'digits', 'pairs'"):
        trainer(tmp_path).fit(module, datamodule=rows(tmp_path, "digits", "nobody"))
    assert not module.is_loaded


def test_a_row_that_names_nobody_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "1+1?", "by": "a"}\n{"prompt": "1+2?"}\n{"prompt": "1+3?", "by": 7}\n')
    source = PromptSource(str(path), teacher_name_field="by")
    read = dict(source.rows())
    assert source.prompt(0, read[0]).teacher == "a"
    with pytest.raises(PromptDataError, match=r"Row 1 of .* has no 'by'.*all teachers then grade every answer"):
        source.prompt(1, read[1])
    with pytest.raises(PromptDataError, match=r"Row 2 of .*: 'by' is 7; expected a teacher's name"):
        source.prompt(2, read[2])


def test_answers_of_teachers_that_nobody_names_are_refused(tmp_path: Path) -> None:
    module = unloaded_module(teacher=None, teachers=settings())
    data = rows(tmp_path, "digits")
    data.train = replace(data.train, teacher_name_field=None)
    with pytest.raises(RecipeError, match="one of digits, pairs has to answer it"):
        trainer(tmp_path, callbacks=[RolloutCallback(SamplingParams(max_tokens=30), teacher_share=0.5)]).fit(
            module, datamodule=data
        )
    assert not module.is_loaded


def test_span_gradients_run_with_several(tmp_path: Path) -> None:
    module = unloaded_module(teacher=None, teachers=settings())
    run = trainer(tmp_path, SpanGradients(every_n_steps=1), max_steps=1)
    run.fit(module, datamodule=rows(tmp_path, "digits", "pairs"))
    assert "span/cosine" in run.callback_metrics
