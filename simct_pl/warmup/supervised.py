"""A causal language model with the loss of given responses behind it: one module whose forward returns the loss sum.

Body, chunks and the head's weight belong into one forward, as FSDP2 gathers what is outside the decoder blocks only
around the root's (see training/student_with_loss.py). Without sharding it is a module like any other.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from simct_pl.models.bits_per_byte import Reference, bits_of
from simct_pl.models.cross_entropy import chunked_cross_entropy
from simct_pl.models.lm_head import LMHead
from simct_pl.models.packing import Layout


class SupervisedModel(nn.Module):
    """A model and how it reads examples.

    Args:
        model: registered; its parameters are all that this module has. layout: see there. chunk_tokens: rows of logits
            that exist at a time. label_smoothing: share of each target spread over the vocabulary.
    """

    def __init__(self, model: PreTrainedModel, layout: Layout, chunk_tokens: int, label_smoothing: float) -> None:
        super().__init__()
        self.model = model
        self.layout, self.chunk_tokens, self.label_smoothing = layout, chunk_tokens, label_smoothing

    def forward(self, examples: Sequence[Reference]) -> Tensor:
        """Cross-entropy summed over the response tokens of a micro-batch, in nats.

        Without examples one token is read, and a zero runs backward: ranks that share a model stay in step.
        """
        states = self.layout.states(self.model, [e.prompt_ids for e in examples], [e.response_ids for e in examples])
        device = states.hidden_NH.device
        target_N = torch.tensor([i for e in examples for i in e.response_ids], dtype=torch.int64, device=device)
        return chunked_cross_entropy(
            states.hidden_NH,
            target_N,
            LMHead.of(self.model),
            chunk_tokens=self.chunk_tokens,
            label_smoothing=self.label_smoothing,
        )

    def bits(self, references: Sequence[Reference]) -> float:
        """Sum of -log2 p(response | prompt) of one micro-batch; run as a forward when sharded."""
        return bits_of(self.model, references, self.chunk_tokens)
