"""Batches: the same ones for the same seed, disjoint from what is held out, with or without wrong numbers."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import pytest

from simct_pl.errors import RecipeError
from simct_pl.tasks.arithmetic import Problem, chain_is_correct
from simct_pl.tasks.benchmark import ArithmeticBenchmark
from simct_pl.tasks.datamodule import ArithmeticDataModule
from simct_pl.types import Prompt


def train_prompts(data: ArithmeticDataModule) -> list[Prompt]:
    return [prompt for batch in data.train_dataloader() for prompt in batch.prompts]


def problem_of(prompt: Prompt) -> Problem:
    return Problem(tuple(map(int, prompt.messages[0]["content"].rstrip("?").split("+"))))


def test_batches_have_the_size_and_number_that_were_asked_for() -> None:
    data = ArithmeticDataModule(batch_size=8, num_train_batches=5, num_val_prompts=12, val_batch_size=6)
    assert [len(batch) for batch in data.train_dataloader()] == [8] * 5
    assert [len(batch) for batch in data.val_dataloader()] == [6, 6]
    assert [prompt.index for prompt in train_prompts(data)] == list(range(40))


def test_the_same_seed_gives_the_same_batches_and_another_one_does_not() -> None:
    first = train_prompts(ArithmeticDataModule(8, 5, corrupt_share=0.5, seed=1))
    assert first == train_prompts(ArithmeticDataModule(8, 5, corrupt_share=0.5, seed=1))
    assert first[:16] == train_prompts(ArithmeticDataModule(8, 2, corrupt_share=0.5, seed=1))
    assert first != train_prompts(ArithmeticDataModule(8, 5, corrupt_share=0.5, seed=2))


def test_held_out_prompts_are_the_same_for_every_seed_and_never_trained_on() -> None:
    data = ArithmeticDataModule(50, 20, num_val_prompts=100, limit=20, seed=7)
    held_out = data.held_out_prompts()
    assert held_out == ArithmeticDataModule(num_val_prompts=100, limit=20, seed=8).held_out_prompts()
    assert all(problem_of(prompt).held_out for prompt in held_out)
    assert not any(problem_of(prompt).held_out for prompt in train_prompts(data))


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_the_asked_share_of_responses_has_a_wrong_number(share: float) -> None:
    prompts = train_prompts(ArithmeticDataModule(50, 20, corrupt_share=share))
    wrong = sum(not chain_is_correct(p.messages[0]["content"], p.response or "") for p in prompts)
    assert wrong / len(prompts) == pytest.approx(share, abs=0.05)
    assert wrong == sum(len(prompt.unsupervised_spans) for prompt in prompts)
    assert all(problem_of(prompt).total == int(prompt.answer or -1) for prompt in prompts)


def test_a_limited_pool_repeats_its_problems() -> None:
    prompts = train_prompts(ArithmeticDataModule(50, 20, num_problems=30))
    assert len({prompt.messages[0]["content"] for prompt in prompts}) == 30


def kinds(datamodule: ArithmeticDataModule) -> Counter[tuple[int, bool]]:
    """How many held-out prompts have so many numbers, and subtract."""
    questions = [prompt.messages[0]["content"] for prompt in datamodule.held_out_prompts()]
    return Counter((len(re.findall(r"\d+", q)), "-" in q) for q in questions)


def test_every_number_of_terms_is_as_likely() -> None:
    found = kinds(ArithmeticDataModule(num_terms=[2, 4], num_val_prompts=150))
    assert set(found) == {(2, False), (4, False)}
    assert min(found.values()) > 50
    trained = [p.messages[0]["content"] for p in train_prompts(ArithmeticDataModule(40, 1, num_terms=[2, 4]))]
    assert {len(re.findall(r"\d+", question)) for question in trained} == {2, 4}


def test_a_list_of_one_number_of_terms_changes_no_problem() -> None:
    same = [ArithmeticDataModule(20, 2, num_terms=terms) for terms in (3, [3])]
    assert train_prompts(same[0]) == train_prompts(same[1])
    assert same[0].held_out_prompts() == same[1].held_out_prompts()


def test_a_share_of_the_problems_subtracts() -> None:
    found = kinds(ArithmeticDataModule(subtract_share=0.25, num_val_prompts=200))
    assert 25 < found[3, True] < 75
    assert found[3, True] + found[3, False] == 200
    assert any("-" in p.messages[0]["content"] for p in train_prompts(ArithmeticDataModule(40, 1, subtract_share=0.25)))


@pytest.mark.parametrize(
    "values",
    [
        {"corrupt_share": 1.5},
        {"num_terms": 1},
        {"num_terms": [3, 1]},
        {"num_terms": []},
        {"limit": 1},
        {"subtract_share": -0.1},
        {"subtract_share": 0.5, "corrupt_share": 0.1},
    ],
)
def test_values_out_of_range_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=next(iter(values))):
        ArithmeticDataModule(**values)


def test_the_benchmark_has_the_held_out_problems_of_the_same_kind() -> None:
    kind: dict[str, Any] = {"num_terms": [2, 3], "limit": 40, "subtract_share": 0.5}
    data = ArithmeticDataModule(**kind, num_val_prompts=20, val_skip=30)
    benchmark = ArithmeticBenchmark(**kind, num_problems=20, skip=30, name="mixed")
    assert benchmark.name == "mixed"
    assert [p.prompt for p in benchmark.problems()] == [p.messages[0]["content"] for p in data.held_out_prompts()]
