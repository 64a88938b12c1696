"""What objectives derive from one side's logits, against torch's own composition."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from simct_pl.losses.inputs.logprobs import ModelLogProbs
from simct_pl.losses.inputs.vocab_tables import Merge, SideTables

NOTHING = torch.zeros(0, dtype=torch.int64)
NO_MERGE = Merge(NOTHING, NOTHING, NOTHING)
EMPTY = SideTables(NOTHING, NO_MERGE, NO_MERGE, NOTHING)
IDS_N = torch.tensor([3, 1, 1, 0, 6])


def chunk(logits_NK: Tensor, lengths: list[int]) -> ModelLogProbs:
    length_U = torch.tensor(lengths)
    unit_N = torch.repeat_interleave(torch.arange(len(lengths)), length_U)
    return ModelLogProbs(logits_NK, IDS_N, unit_N, length_U.cumsum(0) - length_U, EMPTY)


def random_logits() -> Tensor:
    return torch.randn(5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2


@pytest.mark.parametrize("lengths", [[1, 1, 1, 1, 1], [2, 1, 2], [5]])
@pytest.mark.parametrize("parts", ["first", "token", "both"])
def test_both_picks_have_the_gradient_of_log_softmax(lengths: list[int], parts: str) -> None:
    ours, theirs = (random_logits().requires_grad_() for _ in range(2))
    side = chunk(ours, lengths)
    logp_NK = theirs.log_softmax(-1)
    expected = logp_NK[side.first_U], logp_NK[torch.arange(5), IDS_N]
    torch.testing.assert_close(side.first_logp_UK, expected[0])
    torch.testing.assert_close(side.token_logp_N, expected[1])
    weights = [torch.linspace(-1, 2, value.numel(), dtype=torch.float64).view_as(value) for value in expected]
    for picks in ((side.first_logp_UK, side.token_logp_N), expected):
        used = {"first": [0], "token": [1], "both": [0, 1]}[parts]
        torch.stack([(picks[i] * weights[i]).sum() for i in used]).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_units_add_up_their_tokens() -> None:
    side = chunk(random_logits(), [2, 1, 2])
    logp_N = random_logits().log_softmax(-1)[torch.arange(5), IDS_N]
    torch.testing.assert_close(side.unit_logp_U, torch.stack([logp_N[:2].sum(), logp_N[2], logp_N[3:].sum()]))
    assert side.length_U.tolist() == [2, 1, 2]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_normalised_in_single_precision(dtype: torch.dtype) -> None:
    logits_NK = (random_logits() * 20).to(dtype)
    side = chunk(logits_NK, [1] * 5)
    assert side.token_logp_N.dtype == torch.float32
    torch.testing.assert_close(side.first_logp_UK.double(), logits_NK.double().log_softmax(-1), rtol=1e-5, atol=1e-5)
