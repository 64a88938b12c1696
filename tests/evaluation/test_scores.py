"""Means, spread and pass@k against counting by hand."""

from __future__ import annotations

import itertools
import json
import random
import statistics
from pathlib import Path

import numpy as np
import pytest

from simct_pl.errors import EvaluationError, PromptDataError
from simct_pl.evaluation.items import ItemStore
from simct_pl.evaluation.scores import Item, bootstrap_interval, pass_at_k, summarise


def item(problem: str, seed: int, score: float, finish: str = "stop", num_tokens: int = 10) -> Item:
    return Item(problem, seed, seed, "text ▁ \u2028", finish, num_tokens, score, "right" if score else "wrong")


def test_pass_at_k_is_the_share_of_draws_with_a_right_one() -> None:
    for num_samples in range(1, 7):
        for num_right, k in itertools.product(range(num_samples + 1), range(1, num_samples + 1)):
            draws = list(itertools.combinations([True] * num_right + [False] * (num_samples - num_right), k))
            assert pass_at_k(num_samples, num_right, k) == pytest.approx(sum(map(any, draws)) / len(draws))


def test_the_numbers_of_a_small_evaluation() -> None:
    scores = {"a": (1, 1), "b": (0, 1), "c": (0, 0), "d": (0, 1)}
    items = [item(name, k, float(score)) for name, row in scores.items() for k, score in enumerate(row)]
    items[0] = item("a", 0, 1.0, "length", 50)
    random.Random(0).shuffle(items)
    result = summarise("toy", items)
    assert (result.num_problems, result.num_seeds) == (4, 2)
    assert result.accuracy == pytest.approx(0.5)
    assert result.std == pytest.approx(statistics.stdev([0.25, 0.75]))
    assert result.pass_at == {1: pytest.approx(0.5), 2: pytest.approx(0.75)}
    assert (result.truncation_rate, result.response_tokens) == (pytest.approx(1 / 8), pytest.approx(15.0))
    assert result.reasons == {"right": 4, "wrong": 4}
    assert result.metrics()["eval/toy/pass_at_2"] == pytest.approx(0.75)
    assert summarise("toy", [item("a", 0, 1.0)]).std is None


def test_the_interval_is_as_wide_as_theory_says() -> None:
    means_P = np.array([0.0] * 150 + [1.0] * 250)
    low, high = bootstrap_interval(means_P)
    half = 1.96 * np.sqrt(0.625 * 0.375 / 400)
    assert (low, high) == (pytest.approx(0.625 - half, abs=0.006), pytest.approx(0.625 + half, abs=0.006))
    assert bootstrap_interval(means_P) == (low, high)


@pytest.mark.parametrize("items", [[], [item("a", 0, 1), item("a", 1, 1), item("b", 0, 1)], [item("a", 0, 1)] * 2])
def test_an_incomplete_evaluation_has_no_numbers(items: list[Item]) -> None:
    with pytest.raises(EvaluationError, match="each once"):
        summarise("toy", items)


def test_items_come_back_and_a_line_cut_short_is_taken_out(tmp_path: Path) -> None:
    store = ItemStore(tmp_path, "toy", {"seed": 1})
    store.add([item("a", 0, 1.0), item("b", 0, 0.0)])
    whole = store.path.read_bytes()
    store.path.write_bytes(whole + b'{"problem": "c", "resp')
    again = ItemStore(tmp_path, "toy", {"seed": 1})
    assert again.read() == [item("a", 0, 1.0), item("b", 0, 0.0)]
    assert store.path.read_bytes() == whole
    again.add([item("c", 0, 1.0)])
    assert [found.problem for found in again.read()] == ["a", "b", "c"]
    ItemStore(tmp_path, "toy", {"seed": 1}, rank=1).add([item("d", 0, 1.0)])
    assert len(again.read()) == 4


def test_items_of_another_evaluation_are_not_gone_on_with(tmp_path: Path) -> None:
    ItemStore(tmp_path, "toy", {"model": "m", "sampling": {"top_p": 0.95}})
    ItemStore(tmp_path, "toy", json.loads('{"sampling": {"top_p": 0.95}, "model": "m"}'))
    with pytest.raises(EvaluationError, match=r"model = 'm'; this run has 'n'"):
        ItemStore(tmp_path, "toy", {"model": "n", "sampling": {"top_p": 0.95}})


@pytest.mark.parametrize(
    "line",
    [b"", b"\xff\x00", b"{", b"[]", b"3", b"{}", b'{"problem": "a"}', b"[" * 100_000, b"null"],
    ids=range(9),
)
def test_a_damaged_item_is_done_again_and_costs_no_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, line: bytes
) -> None:
    store = ItemStore(tmp_path, "toy", {"seed": 1})
    store.add([item("a", 0, 1.0), item("b", 0, 0.0), item("c", 0, 1.0)])
    first, _, *rest = store.path.read_bytes().split(b"\n")
    store.path.write_bytes(b"\n".join([first, line, *rest]))
    assert store.read() == [item("a", 0, 1.0), item("c", 0, 1.0)]
    assert "items-0.jsonl is damaged: 1 of its 3 items" in caplog.text
    store.add([item("b", 0, 0.0)])
    assert [found.problem for found in store.read()] == ["a", "c", "b"]
    wrong_type = store.path.read_bytes().replace(b'"score": 1.0', b'"score": "1"', 1)
    store.path.write_bytes(wrong_type)
    assert [found.problem for found in store.read()] == ["c", "b"]


@pytest.mark.parametrize("content", [b"", b"\xff", b"[]", b"{", b"[" * 100_000], ids=range(5))
def test_settings_that_cannot_be_read_are_named(tmp_path: Path, content: bytes) -> None:
    ItemStore(tmp_path, "toy", {"seed": 1})
    (tmp_path / "toy/settings.json").write_bytes(content)
    with pytest.raises(PromptDataError, match=r"settings\.json'.*Remove its folder"):
        ItemStore(tmp_path, "toy", {"seed": 1})
