"""What a finished fit shows fits on one screen, whatever the student answered."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from simct_pl.config.summary import in_one_line, samples_table
from simct_pl.training.held_out import HeldOutResult, HeldOutSample


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("It is 6.", "It is 6."),
        ("a\n\nb\r\tc\x1b[31m", "a⏎⏎b\\r\\tc\\x1b[31m"),
        ("x" * 70 + "y" * 70, "x" * 60 + " … " + "y" * 60),
        ("", ""),
    ],
)
def test_a_text_in_one_line(text: str, shown: str) -> None:
    assert in_one_line(text) == shown


@pytest.mark.parametrize("answer", ["\n" * 500, "word " * 500, "line\n" * 100, "\x00\u2028" * 300])
def test_four_samples_are_one_screen(answer: str) -> None:
    results = [HeldOutResult(step, {}, [HeldOutSample(answer, answer, 1.0)] * 4) for step in (0, 5)]
    console = Console(file=io.StringIO(), width=80)
    console.print(samples_table(*results))
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert 8 < len(lines) <= 50
    assert sum(not line.strip(" │┃") for line in lines) == 0


def test_what_looks_like_markup_is_shown_as_it_is() -> None:
    results = [HeldOutResult(step, {}, [HeldOutSample("[bold]q[/bold]", "[/x]", None)]) for step in (0, 5)]
    console = Console(file=io.StringIO(), width=80)
    console.print(samples_table(*results))
    assert isinstance(console.file, io.StringIO)
    assert "[bold]q[/bold]" in console.file.getvalue()
