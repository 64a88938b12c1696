"""The table and the picture of benchmarks.agreement, from figures made by hand and from a toy pair."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.agreement import Result, draw, number, results, rows_of
from simct_pl.preflight.agreement import Agreement


def test_a_cell_is_the_worst_pair_and_the_last_columns_are_means() -> None:
    found = [
        Result("BPM", "a<b", "words", Agreement(0.5, 0.25, 0.2, 0.4)),
        Result("BPM", "b<a", "words", Agreement(0.04, 0.75, 0.4, 0.1)),
        Result("SeqKD", "a<b", "words", Agreement(3.0, 0.0007, 0.2, 0.1)),
    ]
    headers, rows = rows_of(found)
    assert headers == ["objective", "words", "disagreeing", "further off"]
    assert rows == [
        ["BPM", ".50 → .75", ".30 → .25", "1 of 2"],
        ["SeqKD", "– → .0007", ".20 → .10", "0 of 1"],
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *((10.123, "10.1"), (1.0, "1.0"), (0.997, "1.0"), (0.1449, ".14"), (0.0099, ".0099"), (0.00999, ".01")),
        *((0.00083, ".0008"), (1e-6, "0"), (-1e-16, "0")),
    ],
)
def test_figures_are_short(value: float, text: str) -> None:
    assert number(value) == text


def test_a_toy_pair_is_measured_and_drawn(tmp_path: Path) -> None:
    found = results(["digits<pairs"], ["exact", "`marginal`", "SeqKD"], steps=1)
    assert [(r.method, r.language) for r in found] == [(m, "sums") for m in ("exact", "`marginal`", "SeqKD")]
    draw(found, tmp_path / "agreement.png")
    assert (tmp_path / "agreement.png").stat().st_size > 10_000
