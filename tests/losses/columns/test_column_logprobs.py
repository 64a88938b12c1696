"""Columns from ids: a gather and a log-sum-exp by bucket, with a gradient written by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from simct_pl.losses.columns.column_logprobs import column_logprobs
from simct_pl.losses.inputs.vocab_tables import SideTables

NUM_IDS = 9
IDS_V = np.array([4, 0, 7, 2])
# id → bucket; 8 belongs to none, 3 is a further stop of column 3.
BUCKET_K = np.array([1, 0, 3, 3, 0, 0, 2, 2, -1])


def tables() -> SideTables:
    columns_K = np.full(NUM_IDS, -1, np.int64)
    columns_K[IDS_V] = np.arange(len(IDS_V))
    columns_K[3] = 3
    return SideTables.build(IDS_V, columns_K, BUCKET_K, (3,))


def logprobs(num_rows: int = 3, spread: float = 3.0) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(num_rows, NUM_IDS, generator=generator, dtype=torch.float64) * spread).log_softmax(-1)


def composed(logp_UK: Tensor, members: list[list[int]]) -> Tensor:
    """torch's own logsumexp, a column at a time."""
    return torch.stack([logp_UK[:, ids].logsumexp(-1) for ids in members], 1)


either_way = pytest.mark.parametrize("may_wait", [True, False])


@either_way
@pytest.mark.parametrize(
    ("marginal", "members"), [(False, [[4], [0], [7], [2, 3]]), (True, [[4, 1, 5], [0], [7, 6], [2, 3]])]
)
def test_value_and_gradient_are_those_of_a_logsumexp_a_column(
    marginal: bool, members: list[list[int]], may_wait: bool
) -> None:
    ours, theirs = (logprobs().requires_grad_() for _ in range(2))
    weight_UV = torch.arange(12.0, dtype=torch.float64).reshape(3, 4)
    found_UV = column_logprobs(ours, tables(), marginal=marginal, may_wait=may_wait)
    expected_UV = composed(theirs, members)
    torch.testing.assert_close(found_UV, expected_UV)
    (found_UV * weight_UV).sum().backward()
    (expected_UV * weight_UV).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("num_padded", [0, 2])
def test_buckets_are_summed_at_once_unless_one_is_too_improbable(num_padded: int) -> None:
    """Both ways give torch's values, and gradients that leave a model's padded rows alone."""
    members = [[4, 1, 5], [0], [7, 6], [2, 3]]
    for lowest, function, may_wait in (
        (-50.0, "_BucketLogProbs", True),
        (-800.0, "_ColumnLogProbs", True),  # exp(-745) is the least double
        (-50.0, "_AnyBucketLogProbs", False),
        (-760.0, "_AnyBucketLogProbs", False),  # a normal number at the other scale
    ):
        logp_UK = torch.cat([logprobs(), torch.full((3, num_padded), -9.0, dtype=torch.float64)], 1)
        logp_UK[1, 0] = lowest
        ours, theirs = (logp_UK.clone().requires_grad_() for _ in range(2))
        found_UV = column_logprobs(ours, tables(), marginal=True, may_wait=may_wait)
        assert function in type(found_UV.grad_fn).__name__
        expected_UV = composed(theirs, members)
        torch.testing.assert_close(found_UV, expected_UV)
        weight_UV = torch.arange(12.0, dtype=torch.float64).reshape(3, 4)
        (found_UV * weight_UV).sum().backward()
        (expected_UV * weight_UV).sum().backward()
        torch.testing.assert_close(ours.grad, theirs.grad)


@either_way
def test_far_apart_members_keep_their_digits_in_single_precision(may_wait: bool) -> None:
    """Naive sums of exp would underflow at -104: columns are exact far below that, whichever member is the larger."""
    logp_UK = torch.full((1, NUM_IDS), -50.0)
    logp_UK[0, 4], logp_UK[0, 1], logp_UK[0, 5] = -120.0, -110.0, -130.0
    logp_UK[0, 7], logp_UK[0, 6] = -140.0, -0.5
    found_UV = column_logprobs(logp_UK, tables(), marginal=True, may_wait=may_wait)
    expected_UV = composed(logp_UK.double(), [[4, 1, 5], [0], [7, 6], [2, 3]])
    torch.testing.assert_close(found_UV.double(), expected_UV, rtol=1e-6, atol=0)


@either_way
def test_what_is_lost_lies_below_any_use(may_wait: bool) -> None:
    """A column of less than exp(-147) in all keeps at least its own id's share, and its gradient stays finite."""
    logp_UK = torch.full((1, NUM_IDS), -1.0)
    logp_UK[0, [4, 1, 5]] = torch.tensor([-300.0, -290.0, -310.0])
    logp_UK.requires_grad_()
    found_UV = column_logprobs(logp_UK, tables(), marginal=True, may_wait=may_wait)
    assert found_UV[0, 0].item() == -300
    found_UV.sum().backward()
    assert torch.isfinite(logp_UK.grad).all()


@either_way
@pytest.mark.parametrize("marginal", [False, True])
def test_impossible_ids_have_no_gradient(marginal: bool, may_wait: bool) -> None:
    logp_UK = logprobs()
    logp_UK[:, [4, 1, 5]] = -math.inf
    logp_UK[1, 7] = -math.inf
    logp_UK.requires_grad_()
    found_UV = column_logprobs(logp_UK, tables(), marginal=marginal, may_wait=may_wait)
    assert torch.isneginf(found_UV[:, 0]).all()
    found_UV.masked_fill(torch.isneginf(found_UV), 0.0).sum().backward()
    assert torch.isfinite(logp_UK.grad).all()
    assert not logp_UK.grad[:, [4, 1, 5]].any()
