"""The shipped mixture files are those that the script writes, with the faults that they are there for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from scripts import make_arithmetic_mixture
from simct_pl.data.words import words_of
from simct_pl.tasks.arithmetic import Problem


def rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (make_arithmetic_mixture.FOLDER / name).read_text().splitlines()]


def test_the_files_are_what_the_script_writes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shipped = make_arithmetic_mixture.FOLDER
    monkeypatch.setattr(make_arithmetic_mixture, "FOLDER", tmp_path)
    make_arithmetic_mixture.main()
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == sorted(path.name for path in shipped.iterdir())
    for name in names:
        assert (tmp_path / name).read_bytes() == (shipped / name).read_bytes()


def test_held_out_problems_are_held_out_and_some_have_leaked() -> None:
    held_out = {tuple(words_of(row["question"])) for row in rows("held_out.jsonl")}
    additions = {tuple(words_of(row["question"])) for row in rows("additions.jsonl")}
    collected = [tuple(words_of(row["prompt"])) for row in rows("collected.jsonl")]
    assert all(Problem(tuple(int(w) for w in words if w != "+")).held_out for words in held_out)
    assert held_out.isdisjoint(additions)
    assert sum(words in held_out for words in collected) == make_arithmetic_mixture.NUM_LEAKED
    assert sum(words in additions for words in collected) == make_arithmetic_mixture.NUM_REPEATED
    assert collected.count(()) == make_arithmetic_mixture.NUM_BROKEN
