"""Attention on a device that is not there, by the kernels that a GPU would choose.

PyTorch asks a device which of its kernels fits. One without kernels gets the plain products and a [length x length]
matrix of scores a head, which no GPU makes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

aten = torch.ops.aten


@contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """Inside, FlashAttention where there is no mask and the dtype is half a float, else the memory-efficient kernel.

    Replaced by name, since autograd's threads, in which checkpointing computes again, know of no modes.
    """
    plain = F.scaled_dot_product_attention

    def attention(query: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return (fused_attention if query.device.type == "cuda" else plain)(query, *args, **kwargs)

    F.scaled_dot_product_attention = attention
    try:
        yield
    finally:
        F.scaled_dot_product_attention = plain


def fused_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """See torch.nn.functional.scaled_dot_product_attention."""
    if torch.is_autocast_enabled("cuda"):
        query, key, value = (one.to(torch.get_autocast_dtype("cuda")) for one in (query, key, value))
    if enable_gqa:
        times = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(times, 1), value.repeat_interleave(times, 1)
    if attn_mask is None and query.dtype != torch.float32:
        found = aten._scaled_dot_product_flash_attention(query, key, value, dropout_p, is_causal, scale=scale)
    else:
        bias = None if attn_mask is None else _as_bias(attn_mask, query, key)
        needs_sums = query.requires_grad
        found = aten._scaled_dot_product_efficient_attention(
            query, key, value, bias, needs_sums, dropout_p, is_causal, scale=scale
        )
    result: Tensor = found[0]
    return result


def _as_bias(mask: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """What is added to scores, [batch, heads, queries, keys]; heads share it."""
    bias = mask
    if mask.dtype == torch.bool:
        bias = torch.zeros_like(mask, dtype=query.dtype).masked_fill_(mask.logical_not(), -torch.inf)
    return bias.to(query.dtype).expand(query.shape[0], query.shape[1], query.shape[2], key.shape[2])
