"""Batches: the same ones for the same seed, disjoint from what is held out, with or without wrong numbers."""

from __future__ import annotations

import pytest

from simct_pl.errors import RecipeError
from simct_pl.tasks.arithmetic import Problem, chain_is_correct
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


@pytest.mark.parametrize("values", [{"corrupt_share": 1.5}, {"num_terms": 1}, {"limit": 1}])
def test_values_out_of_range_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(RecipeError, match=next(iter(values))):
        ArithmeticDataModule(**values)
