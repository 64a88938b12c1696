"""What is asked, graded and written down; an evaluation that was cut off and goes on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from simct_pl.errors import EvaluationError, PromptDataError, RecipeError
from simct_pl.evaluation.benchmark import Benchmark, Grade, Problem
from simct_pl.evaluation.runner import Evaluation, Protocol
from simct_pl.evaluation.scores import summarise
from simct_pl.rollout.engine import Generation, RolloutEngine, SamplingParams
from simct_pl.tokenization.model_tokenizer import ModelTokenizer
from tests.tiny import ASSETS

QUESTIONS = ["1+2+3?", "10+20+30?", "13+25+7?"]


class Totals(Benchmark):
    """Problems of the embedded task; right is "total 6" and so on."""

    name = "totals"
    max_tokens = 20

    def problems(self) -> list[Problem]:
        return [Problem(f"p{i}", question, gold=str(eval(question[:-1]))) for i, question in enumerate(QUESTIONS)]

    def grade(self, problem: Problem, response: str) -> Grade:
        right = response == f"total {problem.gold}"
        return Grade(float(right), "right" if right else "wrong")


class Scripted(RolloutEngine):
    """Answers "total 6" to everything; remembers what it was asked, and fails after so many requests."""

    policy_version = 0

    def __init__(self, tokenizer: ModelTokenizer, fails_after: int = 1000) -> None:
        self.ids = [*tokenizer.encode("total 6"), tokenizer.stop_ids[0]]
        self.fails_after = fails_after
        self.asked: list[tuple[tuple[int, ...], int]] = []
        self.sampling: SamplingParams | None = None

    def refresh(self, model: object, policy_version: int) -> None:
        raise AssertionError("nobody has new weights")

    def generate(
        self, prompts_ids: list[list[int]], seeds: list[int], sampling: SamplingParams, stop_ids: tuple[int, ...]
    ) -> list[Generation]:
        if len(self.asked) + len(seeds) > self.fails_after:
            raise KeyboardInterrupt
        self.asked += zip(map(tuple, prompts_ids), seeds, strict=True)
        self.sampling = sampling
        return [Generation(self.ids, [0.0] * len(self.ids), "stop") for _ in seeds]


@pytest.fixture(scope="module")
def tokenizer() -> ModelTokenizer:
    return ModelTokenizer.from_pretrained(str(ASSETS / "student"))


def evaluation(
    tokenizer: ModelTokenizer,
    engine: RolloutEngine,
    folder: Path,
    protocol: Protocol | None = None,
    rank: int = 0,
    ranks: int = 1,
) -> Evaluation:
    protocol = protocol or Protocol(num_seeds=2, batch_size=2)
    return Evaluation({"model": "student"}, tokenizer, 128, engine, protocol, folder, rank, ranks)


def test_every_problem_is_answered_once_a_seed(tokenizer: ModelTokenizer, tmp_path: Path) -> None:
    engine = Scripted(tokenizer)
    items = evaluation(tokenizer, engine, tmp_path).run(Totals())
    assert [(item.problem, item.seed_index) for item in items] == [(f"p{i}", k) for k in range(2) for i in range(3)]
    assert [item.score for item in items] == [1, 0, 0] * 2
    assert items[0].response == "total 6"
    assert (items[0].num_tokens, items[0].finish_reason) == (len(engine.ids), "stop")
    assert engine.sampling == SamplingParams(temperature=0.6, top_p=0.95, max_tokens=20)
    assert {prompt for prompt, _ in engine.asked} == {
        tuple(tokenizer.render_prompt([{"role": "user", "content": question}])) for question in QUESTIONS
    }
    assert len({seed for _, seed in engine.asked}) == 6
    assert summarise("totals", items).accuracy == pytest.approx(1 / 3)


def test_an_evaluation_that_is_cut_off_goes_on(tokenizer: ModelTokenizer, tmp_path: Path) -> None:
    whole = evaluation(tokenizer, Scripted(tokenizer), tmp_path / "whole").run(Totals())
    broken = Scripted(tokenizer, fails_after=4)
    with pytest.raises(KeyboardInterrupt):
        evaluation(tokenizer, broken, tmp_path / "cut").run(Totals())
    engine = Scripted(tokenizer)
    assert evaluation(tokenizer, engine, tmp_path / "cut").run(Totals()) == whole
    assert len(engine.asked) == 2
    idle = Scripted(tokenizer, fails_after=0)
    assert evaluation(tokenizer, idle, tmp_path / "cut").run(Totals()) == whole
    more = Scripted(tokenizer)
    assert len(evaluation(tokenizer, more, tmp_path / "cut", Protocol(num_seeds=3)).run(Totals())) == 9
    assert len(more.asked) == 3
    with pytest.raises(EvaluationError, match="seed = 0; this run has 1"):
        evaluation(tokenizer, engine, tmp_path / "cut", Protocol(seed=1)).run(Totals())


def test_problems_or_a_tokenizer_of_another_content_do_not_mix(tokenizer: ModelTokenizer, tmp_path: Path) -> None:
    class OtherGold(Totals):
        def problems(self) -> list[Problem]:
            return [replace(problem, gold="7") for problem in super().problems()]

    class OtherGrading(Totals):
        def grading(self) -> dict[str, Any]:
            return {"time_limit": 1.0}

    evaluation(tokenizer, Scripted(tokenizer), tmp_path).run(Totals())
    with pytest.raises(EvaluationError, match="problems_digest"):
        evaluation(tokenizer, Scripted(tokenizer), tmp_path).run(OtherGold())
    with pytest.raises(EvaluationError, match=r"grading = {}; this run has {'time_limit': 1.0}"):
        evaluation(tokenizer, Scripted(tokenizer), tmp_path).run(OtherGrading())
    teacher = ModelTokenizer.from_pretrained(str(ASSETS / "teacher"))
    with pytest.raises(EvaluationError, match="tokenizer = "):
        evaluation(teacher, Scripted(teacher), tmp_path).run(Totals())


def test_items_of_other_settings_are_refused_before_weights_load(tokenizer: ModelTokenizer, tmp_path: Path) -> None:
    class WithoutWeights(Scripted):
        @property
        def policy_version(self) -> int:  # type: ignore[override]
            raise AssertionError("no weights are loaded yet")

    engine = WithoutWeights(tokenizer, fails_after=0)
    evaluation(tokenizer, engine, tmp_path).check(Totals())
    assert list(tmp_path.iterdir()) == []  # a check leaves nothing behind
    evaluation(tokenizer, Scripted(tokenizer), tmp_path).run(Totals())
    evaluation(tokenizer, engine, tmp_path).check(Totals())
    with pytest.raises(EvaluationError, match="seed = 0; this run has 1"):
        evaluation(tokenizer, engine, tmp_path, Protocol(seed=1)).check(Totals())


@pytest.mark.parametrize("content", ["", "[]", "{"])
def test_settings_that_are_no_settings_are_named(tokenizer: ModelTokenizer, tmp_path: Path, content: str) -> None:
    (tmp_path / "totals").mkdir()
    (tmp_path / "totals/settings.json").write_text(content)
    with pytest.raises(PromptDataError, match=r"totals/settings\.json"):
        evaluation(tokenizer, Scripted(tokenizer), tmp_path).run(Totals())


def test_ranks_share_the_problems(tokenizer: ModelTokenizer, tmp_path: Path) -> None:
    alone = evaluation(tokenizer, Scripted(tokenizer), tmp_path / "alone").run(Totals())
    shares = [
        evaluation(tokenizer, Scripted(tokenizer), tmp_path / "two", rank=rank, ranks=2).run(Totals())
        for rank in range(2)
    ]
    assert [len(share) for share in shares] == [4, 2]
    assert sorted(map(repr, shares[0] + shares[1])) == sorted(map(repr, alone))


def test_seeds_depend_on_the_problem_and_not_on_its_neighbours(tokenizer: ModelTokenizer, tmp_path: Path) -> None:
    every = evaluation(tokenizer, Scripted(tokenizer), tmp_path / "a").run(Totals())
    [first] = evaluation(tokenizer, Scripted(tokenizer), tmp_path / "b", Protocol(num_seeds=1, limit=1)).run(Totals())
    assert first == every[0]


def test_a_prompt_without_room_is_refused_before_anything_is_generated(
    tokenizer: ModelTokenizer, tmp_path: Path
) -> None:
    engine = Scripted(tokenizer)
    with pytest.raises(PromptDataError, match=r"totals, problem p0: \d+ tokens of prompt and max_tokens=127"):
        evaluation(tokenizer, engine, tmp_path, Protocol(max_tokens=127)).check(Totals())
    assert engine.asked == []


def test_problems_of_one_name_are_refused(tokenizer: ModelTokenizer, tmp_path: Path) -> None:
    class Twice(Totals):
        def problems(self) -> list[Problem]:
            return super().problems() * 2

    with pytest.raises(EvaluationError, match="6 problems, 3 of them"):
        evaluation(tokenizer, Scripted(tokenizer), tmp_path).check(Twice())


def test_counts_must_be_positive() -> None:
    with pytest.raises(RecipeError, match="num_seeds is 0"):
        Protocol(num_seeds=0)


def test_what_is_on_disk_is_plain_json(tokenizer: ModelTokenizer, tmp_path: Path) -> None:
    evaluation(tokenizer, Scripted(tokenizer), tmp_path).run(Totals())
    [first, *_] = (tmp_path / "totals/items-0.jsonl").read_text().splitlines()
    assert json.loads(first)["response"] == "total 6"
    settings = json.loads((tmp_path / "totals/settings.json").read_text())
    assert settings["sampling"]["top_p"] == 0.95
