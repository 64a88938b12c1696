"""The table of what paths cost has its rows, and what is known is not asked again."""

from __future__ import annotations

import pytest

from benchmarks import paths, texts
from benchmarks.alignment import SENTENCEPIECE


@pytest.mark.slow
def test_the_table_has_its_rows(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(paths, "BYTE_LEVEL", SENTENCEPIECE)  # one pair to link
    monkeypatch.setattr(paths, "REPEATS", 1)
    monkeypatch.setattr(paths, "KINDS", {"one syllable": texts.repetitive})
    paths.main(num_tokens=40)
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][2:]
    assert [cells[0] for cells in rows] == ["| SentencePiece, one syllable", "| byte-level, one syllable"]
    assert {len(cells) for cells in rows} == {len(paths.HEADERS)}
    for cells in rows:
        assert int(cells[2]) > int(cells[4]) >= int(cells[6]) == 0
