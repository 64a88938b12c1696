"""Boxed answers, and what math-verify makes of them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest

from simct_pl.errors import EvaluationError, PromptDataError, RecipeError
from simct_pl.evaluation import maths
from simct_pl.evaluation.boxed import last_boxed, plain_answer
from simct_pl.evaluation.maths import MathGrader, MathVerifier
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
        (r"\boxed{1} \boxed{\boxed{2}}", "2"),
        (r"{ \boxed{\text{a\}b}} }}", r"\text{a\}b}"),
        ("\\boxed\n{6} \\boxed{{7}", "6"),
        (r"\\boxed{8}", "8"),  # escaped twice
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


SAME_NUMBER = {
    "1000": [
        r"1\,000", "1{,}000", r"1\;000", r"1\:000", r"1\!000", r"1,\!000", r"1\ 000", "1 000", "1~000", "1{\\,}000",
        "1\u2009000", "1\u202f000", "1\u00a0000", r"1\thinspace 000", r"1\thinspace{}000", r"\$1\,000",
        r"\text{\$}1,000",
        r"1\,000\text{ km}", r"1\,000~\mathrm{km}", r"1\,000.00", r"\text{1000 km}", r"\text{1,000 dollars}",
        r"1\,000.",
        r"x = 1\,000", r"1\,000\,", "1 thousand", r"1\text{ thousand dollars}",
    ],
    "1234567": [r"1\,234\,567", "1 234 567"],
    "-1000": [r"-1\,000"],
    "3.141592": [r"3.141\,592"],
    "12345.6789": [r"12\,345.678\,9"],
    r"\frac{1000}{3}": [r"\frac{1\,000}{3}"],
    "25": [r"25\,\%", r"25\%", "25 %", r"25^\circ"],
    "18": [r"\text{18 eggs}", r"18~\text{eggs}", r"\$18", r"18\$", r"\text{18}", r"\textbf{18}"],
    "5000000": ["5 million", r"5\text{ million}", r"5\,\text{million dollars}"],
    r"1{,}000": ["1000"],
}  # fmt: skip
OTHER_NUMBERS = {
    "1000": [
        r"1\,00", r"1\,0000", r"10\,00", r"1\,000\,00", r"1\cdot 000", r"1,\,000", "1; 000", r"1\quad 000", r"1\,001",
        "1 0 0 0",
        r"2\,000", r"1\,000\text{ million}", r"0\,100", "100 0", r"1\,000\,000",
    ],
    "5": [r"\text{5 million}", r"\text{5 or 6}", r"5\text{ million}", "5 thousand", r"\text{5 and a half}", r"5\,5"],
    "1234": [r"12\,34", r"1,\,234", "1, 234"],
    "10100": ["10, 100"],
    "2500": ["x_2 500", r"2^\,500"],
    "1": [r"\text{1 half}", r"\text{1 percent}"],
    "3.5": [r"3\,500"],
    "1500200": ["1.500 200"],
}  # fmt: skip


@pytest.mark.parametrize("gold", SAME_NUMBER)
def test_a_number_may_be_spelt_in_every_way_that_latex_has(verify: MathVerifier, gold: str) -> None:
    assert [answer for answer in SAME_NUMBER[gold] if not verify(gold, f"\\boxed{{{answer}}}").right] == []


@pytest.mark.parametrize("gold", OTHER_NUMBERS)
def test_what_spells_another_number_stays_wrong(verify: MathVerifier, gold: str) -> None:
    assert [answer for answer in OTHER_NUMBERS[gold] if verify(gold, f"\\boxed{{{answer}}}").right] == []


def test_what_is_no_group_of_three_is_left_as_it_is() -> None:
    for answer in (
        r"\frac{1}{2}",
        r"\left( 3, \frac{\pi}{2} \right)",
        "1, 2, 3",
        r"1\,2",
        r"\text{east of 5 trees}",
        "x = 5",
    ):
        assert plain_answer(answer) == answer


def test_an_answer_that_no_person_would_box_is_wrong_at_once(verify: MathVerifier) -> None:
    verify("3", r"\boxed{3}")
    began = time.monotonic()
    for piece in ("x=", "the answer ", "(", "1+", r"\frac{1}"):
        verdict = verify("3", f"\\boxed{{{piece * 1001}3}}")
        assert verdict.reason == "wrong"
        assert len(verdict.answer or "") < 1100
    assert time.monotonic() - began < 5  # math-verify would take as long for each of them
    long = "+".join(f"x_{{{i}}}" for i in range(30))
    assert verify(long, f"\\boxed{{{long}}}").right


def test_a_gold_without_content_is_ungradable_and_fails_no_evaluation() -> None:
    verify = MathVerifier()
    for gold in ("", " "):
        assert verify.verdict(gold, r"\boxed{3}").reason == "ungradable"
    grade = MathGrader()
    with pytest.raises(PromptDataError, match=r"Prompt 4: .*finds no answer in ''"):
        grade(Prompt(4, ({"role": "user", "content": "2+2?"},), answer=""), r"\boxed{3}")


def test_a_process_that_does_not_read_is_killed_too() -> None:
    verify = MathVerifier(time_limit=1.0)
    assert verify("3", r"\boxed{3}").right
    process = verify._process
    assert process is not None
    os.kill(process.pid, signal.SIGSTOP)
    long = "1+" * 40_000 + "1"  # more than a pipe holds
    began = time.monotonic()
    assert verify(long, f"\\boxed{{{long}}}").reason == "timeout"
    assert time.monotonic() - began < 10
    verify.close()


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
