"""The last number decides."""

from __future__ import annotations

import pytest

from simct_pl.evaluation.grader import LastNumberGrader
from simct_pl.types import Prompt


@pytest.mark.parametrize(
    ("response", "answer", "score"),
    [
        ("so 3 and 4 make 7.", "7", 1.0),
        ("#### 1,234", "1234", 1.0),
        ("1234.0", "1,234", 1.0),
        ("-5", "-5", 1.0),
        ("7 of 8", "7", 0.0),
        ("no number 🙂", "7", 0.0),
        ("", "7", 0.0),
        ("7", None, 0.0),
    ],
)
def test_last_number(response: str, answer: str | None, score: float) -> None:
    assert LastNumberGrader()(Prompt(0, ({"role": "user", "content": "q"},), None, answer), response) == score
