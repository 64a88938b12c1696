"""Mixtures: counts, strata, filters, decontamination, what two sources share, missing sources, and the manifest."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from simct_pl.data.build import build_mixture
from simct_pl.data.filters import FieldBetween, FieldIn, PromptLength, PromptWithout
from simct_pl.data.mixture import MixtureSource, Strata
from simct_pl.data.prompts import PromptDataModule
from simct_pl.data.source import PromptSource
from simct_pl.errors import ExportError, MissingFileError, PromptDataError, RecipeError
from simct_pl.files.parquet import read_parquet
from simct_pl.types import Prompt


def source(path: Path, rows: list[dict[str, Any]], answer_field: str | None = "gold") -> PromptSource:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return PromptSource(str(path), prompt_field="text", answer_field=answer_field)


def numbered(path: Path, count: int, what: str = "eggs") -> PromptSource:
    rows = [{"text": f"How many {what} are {i} and {i + 1}?", "gold": 2 * i + 1, "level": i % 4} for i in range(count)]
    return source(path, rows)


def built(folder: Path, **options: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    manifest = build_mixture(output=str(folder), **options)
    assert manifest == json.loads((folder / "manifest.json").read_text())
    rows = list(read_parquet(folder / "mixture.parquet"))
    assert len(rows) == manifest["num_rows"]
    return manifest, rows


def test_a_mixture_has_the_counts_and_says_where_each_row_is_from(tmp_path: Path) -> None:
    sources = {
        "eggs": MixtureSource(numbered(tmp_path / "a.jsonl", 50), count=20),
        "hens": MixtureSource(numbered(tmp_path / "b.jsonl", 30, "hens"), domain="farm"),
    }
    manifest, rows = built(tmp_path / "out", sources=sources)
    assert len(rows) == 50
    report = manifest["sources"]["eggs"]
    assert (report["num_rows"], report["wanted"], report["taken"]) == (50, 20, 20)
    assert report["dropped"] == {"not_drawn": 30}
    assert manifest["sources"]["hens"]["dropped"] == {}
    for row in rows:
        number = row["row"]
        kind, domain = ("eggs", "maths") if row["source"] == "eggs" else ("hens", "farm")
        assert row["messages"] == [{"role": "user", "content": f"How many {kind} are {number} and {number + 1}?"}]
        assert (row["domain"], row["answer"]) == (domain, str(2 * number + 1))
        assert manifest["sources"][row["source"]]["rows"][str(number)] == row["digest"]
    assert [row["source"] for row in rows[:20]].count("eggs") not in (0, 20)  # shuffled


def test_an_output_that_is_a_file_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("x")
    with pytest.raises(ExportError, match="out cannot be made"):
        build_mixture({"eggs": MixtureSource(source(tmp_path / "a.jsonl", [{"text": ""}]))}, str(tmp_path / "out"))


def test_prompts_that_their_source_calls_too_long_stay_out(tmp_path: Path) -> None:
    eggs = numbered(tmp_path / "a.jsonl", 12)
    limited = replace(eggs, max_prompt_chars=len("How many eggs are 8 and 9?"))
    manifest, rows = built(tmp_path / "out", sources={"eggs": MixtureSource(limited)})
    assert sorted(row["row"] for row in rows) == list(range(9))
    assert manifest["sources"]["eggs"]["dropped"] == {"too_long": 3}


def test_the_same_seed_gives_the_same_file(tmp_path: Path) -> None:
    sources = {"eggs": MixtureSource(numbered(tmp_path / "a.jsonl", 50), count=20)}
    first, again, other = (built(tmp_path / str(i), sources=sources, seed=seed)[0] for i, seed in enumerate([0, 0, 1]))
    assert first["sha256"] == again["sha256"] != other["sha256"]


def test_strata_divide_the_count_and_a_shortfall_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    strata = Strata("level", {"0": 0.5, "1": 0.3, "9": 0.2})
    sources = {"eggs": MixtureSource(numbered(tmp_path / "a.jsonl", 40), count=10, strata=strata)}
    manifest, rows = built(tmp_path / "out", sources=sources)
    report = manifest["sources"]["eggs"]
    assert report["strata"] == {"0": 5, "1": 3, "9": 0}
    assert report["dropped"] == {"in_no_stratum": 20, "not_drawn": 12}
    assert sorted(row["row"] % 4 for row in rows) == [0] * 5 + [1] * 3
    assert "gave 8 rows of the 10" in caplog.text


def test_strata_counts_add_up() -> None:
    assert Strata("level", {"a": 1 / 3, "b": 1 / 3, "c": 1 / 3}).counts(10) == {"a": 3, "b": 4, "c": 3}
    with pytest.raises(RecipeError, match="sum 1"):
        Strata("level", {"a": 0.5})


def test_filters_drop_by_name(tmp_path: Path) -> None:
    rows = [
        {"text": "short", "gold": 1, "kind": "a", "score": 1.0},
        {"text": "long enough to stay", "gold": 2, "kind": "a", "score": 0.9},
        {"text": "long, of another kind", "gold": 3, "kind": "b", "score": 1.0},
        {"text": "long, of a low score", "gold": 4, "kind": "a", "score": 0.1},
        {"text": "long, without a score", "gold": 5, "kind": "a", "score": None},
        {"text": "long, with <image> 1", "gold": 6, "kind": "a", "score": 1.0},
    ]
    filters = [PromptLength(8, 100), FieldIn("kind", ["a"]), FieldBetween("score", 0.5), PromptWithout("<image>")]
    sources = {"mixed": MixtureSource(source(tmp_path / "a.jsonl", rows), filters=filters)}
    manifest, kept = built(tmp_path / "out", sources=sources)
    assert [row["row"] for row in kept] == [1]
    assert manifest["sources"]["mixed"]["dropped"] == {
        "prompt_length": 1,
        "kind_not_wanted": 1,
        "score_out_of_bounds": 2,
        "matches_<image>": 1,
    }


@pytest.mark.parametrize(("value", "stays"), [("0.9", True), (0.5, True), ("0.4", False), ("many", False)])
def test_numbers_may_be_texts(value: object, stays: bool) -> None:
    assert FieldBetween("score", 0.5)({"score": value}, Prompt(0, ())) == stays


def test_test_prompts_and_repetitions_stay_out_and_are_listed(tmp_path: Path) -> None:
    first = [{"text": "What is 3 + 4?", "gold": 7}, {"text": "what is 3+4", "gold": 7}, {"text": "And 5?", "gold": 5}]
    second = [
        {"text": "AND  5", "gold": 5},
        {"text": "Say: one two three four five six seven", "gold": 0},
        {"text": "", "gold": 0},
        {"text": "What is 3 - 4?", "gold": -1},
    ]
    sources = {
        "first": MixtureSource(source(tmp_path / "a.jsonl", first)),
        "second": MixtureSource(source(tmp_path / "b.jsonl", second)),
    }
    tests = source(tmp_path / "t.jsonl", [{"text": "x"}, {"text": "One, two, three, four, five, six."}], None)
    manifest, rows = built(tmp_path / "out", sources=sources, test_prompts={"tests": tests}, decontaminate_words=5)
    assert {(row["source"], row["row"]) for row in rows} == {("first", 0), ("first", 2), ("second", 3)}
    assert manifest["sources"]["first"]["dropped"] == {"duplicate": 1}
    report = manifest["sources"]["second"]
    assert report["dropped"] == {"in_earlier_source": 1, "contaminated": 1, "unreadable": 1}
    assert report["overlapping"] == [
        {"row": 0, "reason": "in_earlier_source", "name": "first", "index": 2, "shared": "and 5"},
        {"row": 1, "reason": "contaminated", "name": "tests", "index": 1, "shared": "one two three four five"},
    ]
    assert "has no 'text'" in report["unreadable"][0]


def test_what_is_missing_is_listed_at_once_and_can_be_left_out(tmp_path: Path) -> None:
    sources = {
        "eggs": MixtureSource(numbered(tmp_path / "a.jsonl", 5)),
        "gone": MixtureSource(PromptSource("./gone.jsonl")),
        "hub": MixtureSource(PromptSource("nobody/nothing")),
    }
    tests = {"tests": PromptSource("./tests.jsonl")}
    with pytest.raises(MissingFileError) as raised:
        build_mixture(sources, str(tmp_path / "out"), tests)
    for expected in ("3 data sets", "gone: ", "hub: ", "tests (test prompts): ", "--allow_missing"):
        assert expected in str(raised.value)
    assert not (tmp_path / "out").exists()
    manifest, rows = built(tmp_path / "out", sources=sources, test_prompts=tests, allow_missing=True)
    assert len(rows) == 5
    assert list(manifest["missing"]) == ["gone", "hub", "tests (test prompts)"]
    with pytest.raises(MissingFileError, match="gone"):  # nothing is left to build from
        build_mixture({"gone": sources["gone"]}, str(tmp_path / "none"), allow_missing=True)


def test_a_source_of_which_no_row_can_be_read_is_an_error(tmp_path: Path) -> None:
    rows = PromptSource(numbered(tmp_path / "a.jsonl", 5).path, prompt_field="question")
    with pytest.raises(PromptDataError, match=r"No row of source 'eggs' can be read.*prompt_field"):
        build_mixture({"eggs": MixtureSource(rows)}, str(tmp_path / "out"))


def test_a_test_prompt_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    tests = PromptSource(numbered(tmp_path / "t.jsonl", 5).path, prompt_field="question")
    with pytest.raises(PromptDataError, match="has no 'question'"):
        build_mixture(
            {"eggs": MixtureSource(numbered(tmp_path / "a.jsonl", 5))}, str(tmp_path / "out"), {"tests": tests}
        )


def test_structured_answers_become_json(tmp_path: Path) -> None:
    rows = [{"text": "Write f.", "gold": ["assert f(1) == 1", "assert f('é') == 2"]}]
    _, (row,) = built(tmp_path / "out", sources={"code": MixtureSource(source(tmp_path / "a.jsonl", rows))})
    assert json.loads(row["answer"]) == rows[0]["gold"]


def test_a_run_reads_the_mixture(tmp_path: Path) -> None:
    built(tmp_path / "out", sources={"eggs": MixtureSource(numbered(tmp_path / "a.jsonl", 6))})
    train = PromptSource(str(tmp_path / "out/mixture.parquet"), prompt_field="messages", answer_field="answer")
    (batch,) = PromptDataModule(train, batch_size=8).train_dataloader()
    contents = {prompt.messages[0]["content"]: prompt.answer for prompt in batch.prompts}
    assert contents == {f"How many eggs are {i} and {i + 1}?": str(2 * i + 1) for i in range(6)}
