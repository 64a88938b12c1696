"""Cross-entropy from hidden states, a chunk of rows at a time: no [response x vocabulary] tensor outlives its chunk.

In: states and target ids. Out: the loss sum. A chunk's logits are made again in backward.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from simct_pl.models.lm_head import LMHead

NO_TARGET = -100  # of a row that is read and predicts nothing


def chunked_cross_entropy(
    hidden_NH: Tensor, target_N: Tensor, head: LMHead, *, chunk_tokens: int = 1024, label_smoothing: float = 0.0
) -> Tensor:
    """Sum over rows of -log p(target), in nats, at least fp32.

    Args:
        hidden_NH: any float dtype. target_N: int64; rows of NO_TARGET add nothing. head: states → logits.
        chunk_tokens: rows that have logits at a time. label_smoothing: share of each target that is spread over the
            vocabulary.

    Returns:
        a scalar; without rows a zero that still runs backward through states and head.
    """
    # Checkpointed: a chunk's logits are freed after its forward and made again when backward comes to it.
    parts = [
        checkpoint(_loss_sum, chunk_NH, chunk_N, head, label_smoothing, use_reentrant=False)
        for chunk_NH, chunk_N in zip(hidden_NH.split(chunk_tokens), target_N.split(chunk_tokens), strict=True)
    ]
    return torch.stack(parts).sum()


def _loss_sum(hidden_NH: Tensor, target_N: Tensor, head: LMHead, label_smoothing: float) -> Tensor:
    logits_NK = head(hidden_NH)
    logits_NK = logits_NK.to(torch.promote_types(logits_NK.dtype, torch.float32))
    return F.cross_entropy(
        logits_NK, target_N, reduction="sum", label_smoothing=label_smoothing, ignore_index=NO_TARGET
    )
