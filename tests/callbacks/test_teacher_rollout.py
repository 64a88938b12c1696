"""The teacher's answers as training batches: its text, the student's tokens, the same prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest

from callbacks import RolloutCallback, TeacherRollout
from callbacks.teacher_answers import in_students_tokens
from simct_pl import CrossEntropyLoss, SimCTLoss
from simct_pl.errors import RecipeError
from simct_pl.losses.base import Objective
from simct_pl.models.sharding import Sharding
from simct_pl.rollout.engine import Generation, SamplingParams
from simct_pl.tasks.arithmetic import chain_is_correct
from simct_pl.training.optim import OptimizerConfig
from simct_pl.types import Prompt, Rollout
from tests.tiny import data, trainer, unloaded_module


class Keep(L.Callback):
    """Remembers the rollouts and losses of each step."""

    def __init__(self) -> None:
        self.rollouts: list[Rollout] = []
        self.losses: list[float] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.rollouts += batch.rollouts
        self.losses.append(float(trainer.callback_metrics["loss/train"]))


def fit(
    folder: Path, objective: Objective, max_tokens: int = 48, steps: int = 2, problems: int | None = None
) -> tuple[Keep, Any]:
    module, kept = unloaded_module(objective=objective, optimizer=OptimizerConfig(lr=1e-3)), Keep()
    teacher = TeacherRollout(SamplingParams(temperature=0.0, max_tokens=max_tokens))
    run = trainer(folder, callbacks=[teacher, kept], max_steps=steps)
    run.fit(module, datamodule=data(num_train_batches=steps, num_problems=problems))
    return kept, module


def test_the_student_is_given_what_the_teacher_would_say(tmp_path: Path) -> None:
    kept, module = fit(tmp_path, CrossEntropyLoss())
    assert len(kept.rollouts) == 8
    table = module.pair.student.table
    for rollout in kept.rollouts:
        assert rollout.stopped
        assert rollout.response_ids[-1] == module.pair.student.stop_ids[0]
        text = table.join(rollout.response_ids[:-1]).decode()
        assert module.pair.student.encode(text) == rollout.response_ids[:-1], "spelt as its own tokenizer spells"
        assert chain_is_correct(rollout.prompt.messages[-1]["content"], text), "the embedded teacher is right"


def test_a_response_that_is_cut_has_no_stop(tmp_path: Path) -> None:
    kept, module = fit(tmp_path, CrossEntropyLoss(), max_tokens=5, steps=1)
    assert all(rollout.finish_reason == "length" for rollout in kept.rollouts)
    assert not any(set(rollout.response_ids) & set(module.pair.student.stop_ids) for rollout in kept.rollouts)


def test_a_response_that_the_student_has_no_room_for_is_cut() -> None:
    """The teacher's few tokens may be many of the student's."""
    module = unloaded_module()
    prompt = Prompt(0, ({"role": "user", "content": "1+2?"},))
    prompt_ids = module.pair.student.render_prompt(list(prompt.messages))
    answer = [*module.pair.teacher.encode("1+2= 3, total 3"), module.pair.teacher.stop_ids[0]]
    said = Generation(answer, [0.0] * len(answer), "stop")
    whole = [*module.pair.student.encode("1+2= 3, total 3"), module.pair.student.stop_ids[0]]
    for room, expected, reason in ((len(whole), whole, "stop"), (len(whole) - 1, whole[:-1], "length")):
        module.__dict__["student_context"] = len(prompt_ids) + room
        rollout = in_students_tokens(module, module.pair, prompt, 0, 1, said, 5)
        assert (rollout.response_ids, rollout.finish_reason) == (expected, reason)
        assert len(rollout.engine_logprobs) == len(expected)


@pytest.mark.parametrize("objective", [CrossEntropyLoss(), SimCTLoss("sum_logprob", "marginal")])
def test_the_student_learns_from_it(tmp_path: Path, objective: Objective) -> None:
    """Four problems again and again."""
    kept, _ = fit(tmp_path, objective, steps=24, problems=4)
    assert sum(kept.losses[-3:]) < 0.5 * sum(kept.losses[:3])


def test_held_out_prompts_are_answered_by_the_student(tmp_path: Path) -> None:
    answers = []
    for callback in (RolloutCallback, TeacherRollout):
        module = unloaded_module()
        run = trainer(tmp_path, callbacks=[callback(SamplingParams(max_tokens=30))])
        run.validate(module, datamodule=data(), verbose=False)
        answers.append([sample.response for sample in module.history[-1].samples])
    assert answers[0] == answers[1]


def test_a_sharded_teacher_is_refused(tmp_path: Path) -> None:
    callback = TeacherRollout()
    module = unloaded_module(sharding=Sharding(shard_teacher=True))
    with pytest.raises(RecipeError, match="shard_teacher"):
        callback.setup(trainer(tmp_path), module, "fit")
