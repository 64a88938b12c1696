"""The table of what paths cost has its rows, and what is known is not asked again."""

from __future__ import annotations

import pytest

from benchmarks import paths, texts
from simct_pl.preflight.listed_tokenizer import cut_down
from simct_pl.tokenization.model_tokenizer import ModelTokenizer
from simct_pl.tokenization.pair import TokenizerPair


def small_pair(student: ModelTokenizer, teacher: ModelTokenizer) -> TokenizerPair:
    """With few tokens: linking whole vocabularies takes a minute."""
    return TokenizerPair(*cut_down([student, teacher], [texts.take(texts.repetitive, 400)]))


def test_the_table_has_its_rows(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(paths, "TokenizerPair", small_pair)
    monkeypatch.setattr(paths, "REPEATS", 1)
    monkeypatch.setattr(paths, "KINDS", {"one syllable": texts.repetitive})
    paths.main(num_tokens=40)
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][2:]
    assert [cells[0] for cells in rows] == ["| SentencePiece, one syllable", "| byte-level, one syllable"]
    assert {len(cells) for cells in rows} == {len(paths.HEADERS)}
    for cells in rows:
        assert int(cells[2]) > int(cells[4]) >= int(cells[6]) == 0
