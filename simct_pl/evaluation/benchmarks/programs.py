"""Programs that read standard input: a response and pairs of input and output in, a grade out."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal, InvalidOperation

from simct_pl.evaluation.benchmark import Grade
from simct_pl.evaluation.code_benchmark import code_of
from simct_pl.evaluation.grader import UNGRADABLE
from simct_pl.evaluation.sandbox.sandbox import Sandbox


def grade_program(sandbox: Sandbox, response: str, pairs: Sequence[tuple[str, str]]) -> Grade:
    """Right if the response's program prints each output when it reads its input; else why, by the first that fails."""
    if not pairs:
        return Grade(0.0, UNGRADABLE, "the problem has no test")
    code = code_of(response)
    if not code.strip():
        return Grade(0.0, "no_answer")
    for number, (given, expected) in enumerate(pairs, start=1):
        run = sandbox.run_program(code, given.encode())
        if run.reason != "ok":
            return Grade(0.0, run.reason, f"test {number}: {run.error}")
        if not same_output(run.stdout.decode(errors="replace"), expected):
            return Grade(0.0, "wrong", f"test {number}: printed {run.stdout[:200]!r}")
    return Grade(1.0, "right")


def same_output(printed: str, expected: str) -> bool:
    """Line by line, without blanks at their ends; numbers of a line may be spelt in another way (1.50 for 1.5)."""
    lines = [[line.strip() for line in text.strip().split("\n")] for text in (printed, expected)]
    if len(lines[0]) != len(lines[1]):
        return False
    return all(left == right or _same_numbers(left, right) for left, right in zip(*lines, strict=True))


def _same_numbers(left: str, right: str) -> bool:
    try:
        return [Decimal(word) for word in left.split()] == [Decimal(word) for word in right.split()]
    except InvalidOperation:
        return False
