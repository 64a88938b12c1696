"""The task: what a problem is, which ones are held out, and how answers are graded."""

from __future__ import annotations

import random
import re
from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from simct_pl.errors import PromptDataError, RecipeError
from simct_pl.tasks.arithmetic import (
    ChainGrader,
    Problem,
    TotalGrader,
    chain,
    corrupted,
    distinct_problems,
    stated_total,
)

PROBLEM = Problem((13, 25, 7))
RIGHT = "13+25= 38, 38+7= 45, total 45"
terms = st.lists(st.integers(0, 99), min_size=2, max_size=6).map(tuple)


def locally_wrong(response: str, question_terms: tuple[int, ...]) -> list[str]:
    """Name the numbers of a chain that do not follow from the text before them."""
    *steps, last = response.split(", ")
    running, wrong = str(question_terms[0]), []
    for term, step in zip(question_terms[1:], steps, strict=True):
        left, right, result = re.fullmatch(r"(\d+)\+(\d+)= (\d+)", step).groups()
        wrong += ["left"] * (left != running) + ["right"] * (right != str(term))
        wrong += ["sum"] * (int(result) != int(left) + int(right))
        running = result
    return wrong + ["total"] * (last != f"total {running}")


def test_a_problem_is_written_out_step_by_step() -> None:
    assert PROBLEM.question == "13+25+7?"
    assert PROBLEM.response == RIGHT
    prompt = PROBLEM.prompt(4)
    assert (prompt.index, prompt.response, prompt.answer) == (4, RIGHT, "45")
    assert prompt.messages == ({"role": "user", "content": "13+25+7?"},)


@given(st.lists(st.integers(1, 99), min_size=1, max_size=5), st.integers(0, 99))
def test_a_subtraction_is_written_out_and_is_right(taken: list[int], left: int) -> None:
    problem = Problem((left + sum(taken), *(-number for number in taken)))
    *steps, last = problem.response.split(", ")
    assert problem.question == "-".join([str(left + sum(taken)), *map(str, taken)]) + "?"
    for step, number in zip(steps, taken, strict=True):
        before, taken_away, after = map(int, re.fullmatch(r"(\d+)-(\d+)= (\d+)", step).groups())
        assert (taken_away, after) == (number, before - number)
    assert last == f"total {left}"
    prompt = problem.prompt(0)
    assert TotalGrader()(prompt, problem.response) == ChainGrader()(prompt, problem.response) == 1.0
    assert ChainGrader()(prompt, problem.response.replace("-", "+")) == 0.0


@given(terms)
def test_the_right_chain_has_no_wrong_number(numbers: tuple[int, ...]) -> None:
    assert locally_wrong(Problem(numbers).response, numbers) == []


@given(terms, st.integers(0, 1000))
def test_a_corrupted_chain_has_one_wrong_number_and_goes_on_consistently(numbers: tuple[int, ...], seed: int) -> None:
    problem = Problem(numbers)
    prompt = corrupted(problem.prompt(3), problem, random.Random(seed))
    # A wrong term to the right is the only one that later steps do not repeat.
    assert len(locally_wrong(prompt.response, numbers)) == 1
    assert replace(prompt, response=problem.response, unsupervised_spans=()) == problem.prompt(3)


@given(terms, st.integers(0, 1000))
@example((16, 0), 200)
def test_where_a_corrupted_chain_leaves_the_right_one_is_not_predicted(numbers: tuple[int, ...], seed: int) -> None:
    problem = Problem(numbers)
    prompt = corrupted(problem.prompt(0), problem, random.Random(seed))
    ((start, end),) = prompt.unsupervised_spans
    left = next(i for i, pair in enumerate(zip(problem.response, prompt.response, strict=False)) if len({*pair}) == 2)
    assert start <= left < end
    # The span is one whole number; with the character behind it only if that is where the right chain is left.
    assert prompt.response[start - 1 : start] in ("", "+", " ")
    number = re.match(r"\d+", prompt.response[start:])
    assert number is not None
    assert end == start + len(number[0]) + (left == start + len(number[0]))


def test_a_replaced_number_is_carried_on() -> None:
    assert chain([13, 25, 7], {2: 39}) == "13+25= 39, 39+7= 46, total 46"
    assert chain([13, 25, 7], {3: 30}) == "13+25= 38, 30+7= 37, total 37"


def test_the_same_seed_gives_the_same_problems_and_another_one_does_not() -> None:
    first = distinct_problems(3, 50, 3, 50, held_out=False)
    assert first == distinct_problems(3, 50, 3, 50, held_out=False)
    assert first[:20] == distinct_problems(3, 20, 3, 50, held_out=False)
    assert first != distinct_problems(4, 50, 3, 50, held_out=False)
    assert len(set(first)) == 50


def test_a_tenth_of_all_problems_is_held_out_and_never_among_the_others() -> None:
    everything = [Problem((a, b, c)) for a in range(25) for b in range(25) for c in range(25)]
    share = sum(problem.held_out for problem in everything) / len(everything)
    assert share == pytest.approx(0.1, abs=0.01)
    training = set(distinct_problems(0, 2000, 3, 25, held_out=False))
    evaluation = set(distinct_problems(0, 500, 3, 25, held_out=True))
    assert not training & evaluation
    assert {p.question for p in everything if p.held_out} >= {p.question for p in evaluation}


def test_more_problems_than_exist_are_refused() -> None:
    with pytest.raises(RecipeError, match="about 10 exist"):
        distinct_problems(0, 50, 2, 10, held_out=True)


@pytest.mark.parametrize(
    ("response", "total", "whole_chain"),
    [
        (RIGHT, 1.0, 1.0),
        ("13+25= 39, 38+7= 45, total 45", 1.0, 0.0),  # right in the end all the same
        ("13+25= 38, 38+7= 46, total 46", 0.0, 0.0),
        ("total 45", 1.0, 0.0),
        ("13+25= 38, 38+7= 45, total 45, total 45", 0.0, 0.0),
        ("13+25= 38, 38+7= 45, total 456", 0.0, 0.0),
        ("13+25= 38, 38+7= 45, total 45 ", 0.0, 0.0),
        ("13+25= 38, 38+7= 45, total", 0.0, 0.0),
        ("13+25= 38, 38+7= 45, subtotal 45", 0.0, 0.0),
        ("", 0.0, 0.0),
        ("total forty-five", 0.0, 0.0),
        ("\ufffd total 45", 0.0, 0.0),
    ],
)
def test_graders(response: str, total: float, whole_chain: float) -> None:
    prompt = PROBLEM.prompt(0)
    assert TotalGrader()(prompt, response) == total
    assert ChainGrader()(prompt, response) == whole_chain


def test_an_answer_that_is_no_number_is_named() -> None:
    prompt = replace(PROBLEM.prompt(7), answer="1+2= 3\n#### 3")
    with pytest.raises(PromptDataError, match=r"Prompt 7 has the answer '1\+2= 3.*answer_pattern"):
        TotalGrader()(prompt, "total 3")


@given(terms)
def test_the_stated_total_of_a_right_chain_is_the_sum(numbers: tuple[int, ...]) -> None:
    assert stated_total(Problem(numbers).response) == sum(numbers)
