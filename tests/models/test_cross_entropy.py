"""Chunked cross-entropy: values and gradients of the plain formula in float64, whatever the chunks; flat in memory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from simct_pl.models.cross_entropy import NO_TARGET, chunked_cross_entropy
from simct_pl.models.lm_head import LMHead


def scene(num_rows: int = 11) -> tuple[Tensor, Tensor, nn.Linear]:
    torch.manual_seed(0)
    projection = nn.Linear(6, 17, bias=True).double()
    hidden_NH = torch.randn(num_rows, 6, dtype=torch.float64, requires_grad=True)
    return hidden_NH, torch.randint(0, 17, (num_rows,)), projection


def plain(hidden_NH: Tensor, target_N: Tensor, head: LMHead, smoothing: float) -> Tensor:
    """-log of the softmax, written out: exp, sum, log; one row at a time."""
    total = torch.zeros((), dtype=torch.float64)
    for row_H, target in zip(hidden_NH, target_N, strict=True):
        logits_K = head.projection.weight @ row_H + head.projection.bias
        if head.softcap:
            logits_K = head.softcap * torch.tanh(logits_K / head.softcap)
        log_z = torch.log(torch.exp(logits_K).sum())
        loss_K = log_z - logits_K
        total = total + (1 - smoothing) * loss_K[target] + smoothing * loss_K.mean()
    return total


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("chunk_tokens", [1, 4, 11, 100])
def test_value_and_gradients(chunk_tokens: int, softcap: float | None, smoothing: float) -> None:
    hidden_NH, target_N, projection = scene()
    head = LMHead(projection, softcap=softcap)
    wanted = (hidden_NH, projection.weight, projection.bias)
    found = chunked_cross_entropy(hidden_NH, target_N, head, chunk_tokens=chunk_tokens, label_smoothing=smoothing)
    expected = plain(hidden_NH, target_N, head, smoothing)
    torch.testing.assert_close(found, expected)
    for ours, theirs in zip(torch.autograd.grad(found, wanted), torch.autograd.grad(expected, wanted), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("chunk_tokens", [1, 4, 100])  # a chunk without any target, and some with both
def test_a_row_without_a_target_adds_nothing(chunk_tokens: int, smoothing: float) -> None:
    hidden_NH, target_N, projection = scene()
    kept_N = torch.arange(11) % 3 != 1
    named_N = torch.where(kept_N, target_N, NO_TARGET)
    wanted, options = (hidden_NH, projection.weight), {"label_smoothing": smoothing}
    found = chunked_cross_entropy(hidden_NH, named_N, LMHead(projection), chunk_tokens=chunk_tokens, **options)
    expected = plain(hidden_NH[kept_N], target_N[kept_N], LMHead(projection), smoothing)
    torch.testing.assert_close(found, expected)
    for ours, theirs in zip(torch.autograd.grad(found, wanted), torch.autograd.grad(expected, wanted), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_without_rows_a_zero_runs_backward() -> None:
    hidden_NH, target_N, projection = scene(0)
    loss = chunked_cross_entropy(hidden_NH, target_N, LMHead(projection))
    loss.backward()
    assert loss.item() == 0
    assert projection.weight.grad is not None
    assert not projection.weight.grad.any()


class LargestResult(TorchDispatchMode):
    """Numbers in the largest tensor that any operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.size = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple) else (result,):
            if isinstance(tensor, Tensor):
                self.size = max(self.size, tensor.numel())
        return result


def test_no_tensor_of_response_by_vocabulary_exists() -> None:
    projection = nn.Linear(4, 500)
    hidden_NH = torch.randn(256, 4, requires_grad=True)
    with LargestResult() as largest:
        loss = chunked_cross_entropy(hidden_NH, torch.zeros(256, dtype=torch.int64), LMHead(projection), chunk_tokens=8)
        loss.backward()
    assert 8 * 500 <= largest.size < 16 * 500
