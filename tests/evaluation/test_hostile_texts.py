"""What a collapsed model writes is read in linear time: four times the text takes about four times as long.

Processor time of this thread is compared between two lengths, in turns, and the least of several counts; a reading that
grows with the square takes sixteen times as long.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import pytest

from simct_pl.data.words import words_of
from simct_pl.evaluation.benchmarks.programs import same_output
from simct_pl.evaluation.boxed import last_boxed, plain_answer
from simct_pl.evaluation.code_benchmark import code_of
from simct_pl.evaluation.grader import LastNumberGrader
from simct_pl.tasks.arithmetic import chain_is_correct, stated_total
from simct_pl.types import Prompt
from simct_pl.warmup.response_filters import NoReplacementCharacter, NotRepetitive
from simct_pl.warmup.responses import Response

PROMPT = Prompt(0, ({"role": "user", "content": "q"},), None, "7")


def filtered(text: str) -> bool:
    response = Response(0, 0, [], "7", None, text, "stop", 0, 0, 1, [1])
    return NotRepetitive()(response) and NoReplacementCharacter()(response)


READERS: dict[str, Callable[[str], object]] = {
    "code": lambda text: code_of(text, "f"),
    "code in a block": lambda text: code_of(f"```python\n{text}", "f"),
    "box": last_boxed,
    "box around it": lambda text: last_boxed(f"\\boxed{{{text}}}"),
    "answer": plain_answer,
    "last number": lambda text: LastNumberGrader()(PROMPT, text),
    "program's output": lambda text: same_output(text, text + "1"),
    "words": words_of,
    "filters": filtered,
    "total": stated_total,
    "chain": lambda text: chain_is_correct("1+2?", text),
}
HOSTILE = [
    "\n", " \n", "\n\t", "\r\n", " ", "\t", "`", "```", "```a", "```\n", "```python\n", "``` ", "~", "def ", "async ",
    "async\n", "def f", "class\n", "f ", "f:", "f\n", "\\boxed{", "\\boxed", "\\boxed ", "\\boxed{}", "\\boxed{1}",
    "{", "}", "{}", "\\", "\\!", "\\,", "1\\,", "1 ", "1,", "1{,}", "1.", "1.0 ", "9", "-", "-1", "\\text{",
    "\\text{1 a", "1 a ", "\\thinspace ", "\\thinspace", "$", "%", "\\ %", "the ", "total ", "total 1", "total 1, ",
    "1+", "* ", "**1", ".", ",", "\u0301\u0323", "\u0065\u0323\u0301", "\u0f73\u0345", "ﷺ", "각", "\u2009",
    "\u0031\u2009", "\u00e9", "🙂", "�", "字",
]  # fmt: skip


def seconds(read: Callable[[str], object], text: str) -> float:
    began = time.thread_time()
    read(text)
    return time.thread_time() - began


@pytest.mark.parametrize("name", READERS)
def test_hostile_texts_take_time_that_grows_with_their_length(name: str) -> None:
    read, slow = READERS[name], []
    others = random.Random(0).sample(HOSTILE, len(HOSTILE))
    for piece in [*HOSTILE, *map("".join, zip(HOSTILE, others, strict=True))]:
        short, long = (piece * (size // len(piece)) for size in (4_000, 16_000))
        for _ in range(5):
            ratio = seconds(read, long) / max(seconds(read, short), 0.0005)
            if ratio < 9:
                break
        else:
            slow.append((piece, ratio))
    assert slow == []


def test_sixteen_thousand_line_breaks_in_a_block_are_no_code_and_no_wait() -> None:
    assert seconds(lambda text: code_of(text, "f"), "```python\n" + "\n" * 65_536) < 1.0  # a square took 150 s


def test_long_numbers_are_compared_exactly() -> None:
    digits = "9" * 400
    for response, answer, score in (
        (digits, digits, 1.0),
        (digits + "1", digits, 0.0),
        ("9007199254740993", "9007199254740992", 0.0),
    ):
        assert LastNumberGrader()(Prompt(0, ({"role": "user", "content": "q"},), None, answer), response) == score
