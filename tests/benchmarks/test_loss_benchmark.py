"""The forms of the loss benchmark compute what they say: a wrong form would be compared with the wrong thing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from benchmarks import loss
from benchmarks.loss_forms import MARGINAL, PAPER, chunked, dense, recomputed, row_by_row, same_tokenizer
from benchmarks.synthetic import Problem, make_problem
from simct_pl.losses.base import Objective
from simct_pl.losses.simct import SimCTLoss


def problem() -> Problem:
    return make_problem(60, 200, 300, 8, 12, torch.float64)


def gradient(value: Tensor, given: Problem) -> Tensor:
    (found,) = torch.autograd.grad(value, given.student_hidden_NH)
    return found


@pytest.mark.parametrize("objective", [MARGINAL, PAPER])
def test_chunked_recomputed_and_dense_are_one_loss(objective: Objective) -> None:
    given = problem()
    expected = dense(given, 16, objective=objective)
    assert torch.isfinite(expected)
    for form in (chunked, recomputed):
        found = form(given, 16, objective=objective)
        torch.testing.assert_close(found.double(), expected)
        torch.testing.assert_close(gradient(found, given), gradient(dense(given, 16, objective=objective), given))


def test_the_loop_over_units_is_the_released_score() -> None:
    given = problem()
    expected = dense(given, 16, objective=SimCTLoss("mean_logit", "keep"))
    torch.testing.assert_close(row_by_row(given, 16), expected)


def test_the_same_tokenizer_form_has_a_gradient() -> None:
    given = problem()
    assert gradient(same_tokenizer(given, 16), given).any()


def test_a_length_in_memory_is_read_off_the_line() -> None:
    gib = loss.GIB
    flat = {512: loss.Cell(1, gib), 2048: loss.Cell(1, gib)}
    rising = {512: loss.Cell(1, gib), 1024: loss.Cell(1, 2 * gib)}
    assert loss._longest(flat, 8) == "> 1,000,000"
    assert loss._longest(rising, 8) == "4,096"
    assert not loss._worth_running("dense (`marginal`)", list(rising.items()), 8192, 8, 300)
    assert loss._worth_running("simct_pl, as published (`keep`)", list(rising.items()), 8192, 8, 300)
    assert not loss._worth_running("simct_pl, as published (`keep`)", list(rising.items()), 8192, 8, patience=7)


def test_the_chunked_forms_are_compared_with_the_products() -> None:
    pair = loss.Pair("tiny", 200, 300, 8, 12)
    found = loss.times(loss.PRODUCTS, pair, chunk_tokens=16, dtype="float32", threads=1, num_tokens=60)
    assert found[loss.PRODUCTS] == 1
    assert found.keys() == {form for form in loss.FORMS if "simct_pl" in form or "recomputed" in form} | {loss.PRODUCTS}
    assert all(ratio > 0 for ratio in found.values())
