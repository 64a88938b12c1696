"""A longer response does not make the process grow: not only are no more tensors alive, the heap stays whole too."""

from __future__ import annotations

import sys

import pytest

from benchmarks.live_bytes import LiveBytes
from benchmarks.loss_forms import FORMS
from benchmarks.measure import peak_memory
from benchmarks.synthetic import make_problem
from tests import warm

MIB = 2**20


MARGINAL, CONDITIONAL = "simct_pl, mass-preserving (`marginal`)", "simct_pl, one question a token"


def peak_of(name: str, num_tokens: int) -> int:
    """Bytes that the loss and its gradients take beyond what they are given, over the vocabularies of a real pair."""
    form = FORMS[name]
    form(make_problem(64, 512, 768, 8, 8), 16).backward()  # what a first call loads is not its memory
    problem = make_problem(num_tokens, 49_152, 128_256, 8, 8)
    with peak_memory() as peak:
        form(problem, 256).backward()
    return peak.extra


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("name", [MARGINAL, CONDITIONAL])
def test_memory_of_the_loss_is_flat_in_the_response(name: str) -> None:
    short, long = (warm.call(peak_of, name, num_tokens) for num_tokens in (512, 4096))
    assert short > 50 * MIB, "two chunks of logits alone are more"
    assert long < 1.25 * short, f"{short / MIB:.0f} MiB at 512 tokens, {long / MIB:.0f} at 4,096"


def alive_of(name: str) -> int:
    """Most bytes of tensors alive at a time."""
    problem = make_problem(512, 49_152, 128_256, 8, 8)
    with LiveBytes() as alive:
        FORMS[name](problem, 256).backward()
    return alive.most


@pytest.mark.slow
def test_one_question_a_token_takes_no_more_than_marginal() -> None:
    """With its labels and what a strip's lists are written out to."""
    marginal, conditional = (warm.call(alive_of, name) for name in (MARGINAL, CONDITIONAL))
    assert conditional < marginal, f"{conditional / MIB:.0f} MiB; marginal has {marginal / MIB:.0f}"
