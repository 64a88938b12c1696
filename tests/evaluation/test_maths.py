"""Boxed answers, and what math-verify makes of them."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from simct_pl.errors import EvaluationError, RecipeError
from simct_pl.evaluation import maths
from simct_pl.evaluation.maths import MathGrader, MathVerifier, last_boxed
from simct_pl.types import Prompt


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        (r"so \boxed{3}.", "3"),
        (r"first \boxed{1}, then \boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\left\{1, 2\right\}}", r"\left\{1, 2\right\}"),
        (r"\boxed{\{1\}} is it", r"\{1\}"),
        (r"\boxed {7}", "7"),
        (r"\boxed{4} and then \boxed{5", "4"),  # cut at the length limit
        (r"\boxed 5", None),
        ("the answer is 3", None),
        (r"\boxed{}", ""),
    ],
)
def test_the_last_whole_box_is_the_answer(response: str, answer: str | None) -> None:
    assert last_boxed(response) == answer


@pytest.fixture(scope="module")
def verify() -> Iterator[MathVerifier]:
    verifier = MathVerifier()
    yield verifier
    verifier.close()


@pytest.mark.parametrize(
    ("gold", "response", "reason"),
    [
        ("18", r"\boxed{18}", "right"),
        ("18", r"\boxed{\$18}", "right"),
        ("70000", r"\boxed{70,000}", "right"),
        ("18", r"\boxed{18.0}", "right"),
        ("18", r"\boxed{81}", "wrong"),
        ("18", r"18, or \boxed{17} then \boxed{19}", "wrong"),
        ("18", r"\boxed{18} and \boxed{19}", "wrong"),  # both would be read as a set that holds the gold
        ("18", "18", "no_answer"),
        (r"\frac{1}{2}", r"\boxed{0.5}", "right"),
        (r"\left( 3, \frac{\pi}{2} \right)", r"\boxed{(3, \pi/2)}", "right"),
        (r"\left( 3, \frac{\pi}{2} \right)", r"\boxed{(\pi/2, 3)}", "wrong"),
        ("x^2+1", r"\boxed{1 + x^2}", "right"),
        (r"\text{Evelyn}", r"\boxed{\text{Evelyn}}", "right"),
        (r"\text{Evelyn}", r"\boxed{\text{Carla}}", "wrong"),
    ],
)
def test_answers_are_compared_as_mathematics(verify: MathVerifier, gold: str, response: str, reason: str) -> None:
    verdict = verify(gold, response)
    assert (verdict.right, verdict.reason) == (reason == "right", reason)


def test_a_gold_that_cannot_be_read_is_an_error(verify: MathVerifier) -> None:
    with pytest.raises(EvaluationError, match="finds no answer in the gold"):
        verify("", r"\boxed{3}")


def test_a_process_that_was_killed_between_two_comparisons_costs_no_verdict() -> None:
    verify = MathVerifier()
    try:
        assert verify("3", r"\boxed{3}").right
        process = verify._process
        assert process is not None
        process.kill()
        process.wait()
        assert verify("3", r"\boxed{3}").right
    finally:
        verify.close()


def test_a_comparison_that_hangs_is_killed_and_the_next_one_works(monkeypatch: pytest.MonkeyPatch) -> None:
    verify = MathVerifier(time_limit=1.0)
    try:
        assert verify("3", r"\boxed{3}").right
        process = verify._process
        assert process is not None
        import os
        import signal

        os.kill(process.pid, signal.SIGSTOP)  # it will not answer
        began = time.monotonic()
        assert verify("3", r"\boxed{3}").reason == "timeout"
        assert time.monotonic() - began < 5
        assert process.poll() is not None
        verify.time_limit = 15.0
        assert verify("3", r"\boxed{3}").right
    finally:
        verify.close()


def test_the_grader_gives_numbers() -> None:
    grade = MathGrader()
    prompt = Prompt(0, ({"role": "user", "content": "2+2?"},), answer="4")
    assert [grade(prompt, r"\boxed{4}"), grade(prompt, r"\boxed{5}")] == [1.0, 0.0]
    grade.verify.close()


def test_without_time_nothing_can_be_compared() -> None:
    with pytest.raises(RecipeError, match="more than 0 seconds"):
        maths.MathVerifier(0)
