"""Results on terminals of every width: each number whole, in a table or in a list."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from simct_pl.evaluation.report import print_results
from simct_pl.evaluation.scores import BenchmarkResult

REASONS = {"right": 1080, "wrong": 1200, "no_answer": 180, "timeout": 30, "ungradable": 10}
RESULTS = [
    BenchmarkResult(name, 500, 5, 0.4321, 0.0123, 0.391, 0.472, {1: 0.43, 2: 0.51, 5: 0.62}, 0.031, 812.3, REASONS)
    for name in ("gsm8k", "mbpp_sanitized_test", "livecodebench_v6", "[own]")
]
WHOLE = ["43.2 ± 1.2", "39.1 to 47.2", "@2 51.0, @5 62.0", "3.1", "812", "10 ungradable"]


def printed(width: int, results: list[BenchmarkResult] = RESULTS) -> str:
    file = io.StringIO()
    print_results(results, "student, 5 seeds", Console(file=file, width=width))
    return file.getvalue()


@pytest.mark.parametrize("width", [*range(60, 100, 5), *range(100, 210)])
def test_no_number_is_cut(width: int) -> None:
    lines = printed(width).splitlines()
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    for result in RESULTS:
        assert result.benchmark in text
    for value in WHOLE[:-1]:
        assert text.count(value) >= len(RESULTS), value
    assert "…" not in text
    if "┏" in text:
        assert {line[-1] for line in lines[1:]} == set("┓┃┩│┘")
    assert len(lines) <= 12 * len(RESULTS) + 3


def test_a_wide_terminal_gets_a_table_and_a_narrow_one_a_list() -> None:
    assert printed(200).count("benchmark") == 1
    assert len(printed(200).splitlines()) < len(printed(80).splitlines())
    assert "10 ungradable" in printed(80)


def test_a_result_with_one_seed_and_nothing_wrong_has_no_empty_lines() -> None:
    result = BenchmarkResult("gsm8k", 3, 1, 1.0, None, 1.0, 1.0, {1: 1.0}, 0.0, 5.0, {"right": 3})
    text = printed(60, [result])
    assert "100.0" in text
    assert "pass@k" not in text
    assert "by reason" not in text
    assert printed(80, []).strip() in ("", "student, 5 seeds")
