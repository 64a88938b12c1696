"""Which tokens become candidates, and why the others do not."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from simct_pl.errors import RecipeError
from simct_pl.scoring.heads import LMHead
from simct_pl.scoring.proposals import Continuations, LeftOut, Likeliest, choose, likeliest_unshared
from simct_pl.scoring.spelling import Speller
from simct_pl.tokenization.model_tokenizer import ModelTokenizer
from simct_pl.tokenization.pair import TokenizerPair
from tests.tokenization.small import byte_level, sentencepiece_bpe


def speller() -> Speller:
    pair = TokenizerPair(ModelTokenizer(sentencepiece_bpe(("happy", "world"))), ModelTokenizer(byte_level(("hap",))))
    return Speller(pair.student, pair.teacher, pair.shared_vocab)


def likeliest(of: Speller, rows: list[list[tuple[bytes, float]]]) -> Likeliest:
    """Found tokens by their bytes and probabilities."""
    ids = {token: i for i, token in reversed(list(enumerate(of.own.tokens)))}
    ids_Uk = np.array([[ids[text] for text, _ in row] for row in rows])
    probs_Uk = np.array([[probability for _, probability in row] for row in rows])
    return Likeliest(ids_Uk, np.log(probs_Uk), probs_Uk.sum(1))


def texts(of: Speller, found: Likeliest, config: Continuations, unit_texts: list[bytes], response_U: list[int]):  # type: ignore[no-untyped-def]
    proposals, left_out = choose(found, unit_texts, np.array(response_U), of, config)
    return [(p.unit, of.own[p.token_id]) for p in proposals], {k: v for k, v in left_out.items() if v}


def test_every_reason_is_counted() -> None:
    of = speller()
    half = "é".encode()[:1]
    found = likeliest(
        of,
        [
            [(b"happy", 0.5), (b"world", 0.3)],
            [(b"happ", 0.2), (half, 0.1)],
            [(b"happ", 0.2), (b"world", 0.0001)],  # not likely enough: neither here nor there
        ],
    )
    config = Continuations(student_k=2, min_probability=0.01, max_tokens=4)
    chosen, left_out = texts(of, found, config, [b"happy", b"", b""], [0, 0, 1])
    assert chosen == [(1, b"happ"), (2, b"happ")]
    assert left_out == {LeftOut.THE_UNIT: 1, LeftOut.TOO_LONG: 1, LeftOut.UNSPELLABLE: 1}


def test_units_of_each_response_with_the_most_mass() -> None:
    of = speller()
    masses = [0.1, 0.4, 0.4, 0.2, 0.3]
    found = likeliest(of, [[(b"happy", mass)] for mass in masses])
    chosen, left_out = texts(of, found, Continuations(units_per_response=1), [b""] * 5, [0, 0, 0, 1, 1])
    assert [unit for unit, _ in chosen] == [1, 4]  # of equals, the earlier
    assert left_out == {LeftOut.UNIT_LIMIT: 3}


def test_twins_of_equal_bytes_are_one_candidate() -> None:
    of = speller()
    found = likeliest(of, [[(b"happy", 0.5), (b"happy", 0.2)]])
    chosen, left_out = texts(of, found, Continuations(), [b""], [0])
    assert chosen == [(0, b"happy")]
    assert left_out == {LeftOut.SAME_BYTES: 1}


@pytest.mark.parametrize("chunk_tokens", [1, 2, 100])
def test_the_likeliest_are_those_of_all_logits(chunk_tokens: int) -> None:
    torch.manual_seed(0)
    head, hidden_NH = LMHead(nn.Linear(4, 9), softcap=2.0), torch.randn(7, 4)
    row_U, unshared = torch.tensor([0, 3, 6]), np.array([1, 4, 8])
    found = likeliest_unshared(hidden_NH, row_U, head, unshared, 2, chunk_tokens)
    probs_UK = head(hidden_NH[row_U]).softmax(-1)
    for unit in range(3):
        ranked = sorted(unshared.tolist(), key=lambda i: -float(probs_UK[unit, i]))
        assert found.ids_Uk[unit].tolist() == ranked[:2]
        assert found.logp_Uk[unit, 0] == pytest.approx(math.log(float(probs_UK[unit, ranked[0]])), rel=1e-5)
        assert found.unshared_U[unit] == pytest.approx(float(probs_UK[unit, unshared].sum()), rel=1e-5)


def test_nothing_unshared_and_no_unit_give_nothing() -> None:
    head = LMHead(nn.Linear(4, 9))
    nothing = likeliest_unshared(torch.randn(7, 4), torch.tensor([1, 2]), head, np.empty(0, np.int64), 2, 10)
    assert nothing.ids_Uk.shape == (2, 0)
    no_unit = likeliest_unshared(torch.randn(7, 4), torch.empty(0, dtype=torch.int64), head, np.array([1]), 2, 10)
    assert no_unit.ids_Uk.shape == (0, 1)


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"student_k": -1}, "student_k=-1"),
        ({"min_probability": 0.0}, "min_probability is 0.0"),
        ({"units_per_response": 0}, "units_per_response is 0"),
        ({"max_tokens": 1}, "max_tokens is 1"),
    ],
)
def test_values_out_of_range_are_refused(values: dict[str, float], name: str) -> None:
    with pytest.raises(RecipeError, match=name):
        Continuations(**values)  # type: ignore[arg-type]
