"""A causal language model with the loss of given responses behind it: one module whose forward returns the loss sum.

Body, chunks and the head's weight belong into one forward, as FSDP2 gathers what is outside the decoder blocks only
around the root's (see training/student_with_loss.py). Without sharding it is a module like any other.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from simct_pl.errors import PromptDataError
from simct_pl.models.bits_per_byte import Reference, bits_of
from simct_pl.models.cross_entropy import NO_TARGET, chunked_cross_entropy
from simct_pl.models.lm_head import LMHead
from simct_pl.models.packing import Layout
from simct_pl.tokenization.model_tokenizer import ModelTokenizer
from simct_pl.tokenization.thinking import Thinking, answer_start
from simct_pl.types import Prompt


class Example(NamedTuple):
    """A response to learn, in a model's own tokens.

    prompt_ids: in the model's own template. response_ids: the stop last. target_ids: the same, NO_TARGET where a token
    is read and not predicted. num_read: response ids in front of the conversation's last turn, where earlier turns are
    learned too.
    """

    prompt_ids: list[int]
    response_ids: list[int]
    target_ids: list[int]
    num_read: int = 0

    @property
    def num_targets(self) -> int:
        """Tokens that the loss is a sum over."""
        return len(self.target_ids) - self.target_ids.count(NO_TARGET)

    @property
    def reference(self) -> Reference:
        """The last turn, without the stop: it has no bytes, and models of other tokenizers are compared by bits per
        byte."""
        before, last = self.response_ids[: self.num_read], self.response_ids[self.num_read : -1]
        return Reference([*self.prompt_ids, *before], last)


def with_thinking(prompt: Prompt, thinking: Thinking, is_open: bool = False) -> Prompt:
    """A prompt whose response is to be learned, with its thinking supervised, marked as unsupervised, or left out.

    is_open: the rendered prompt ends with the opening mark.

    Raises:
        PromptDataError: without a response, or with one that is all thinking, which is not to be learned.
    """
    if not prompt.response:
        raise PromptDataError(
            f"Prompt {prompt.index} has no response to learn from. "
            "Set response_field of data.train (and of data.val) to the field that holds it."
        )
    response = prompt.response.encode()
    start = 0 if thinking == "supervised" else answer_start(response, is_open)
    if start == 0:
        return prompt
    if start == len(response):
        raise PromptDataError(
            f"The response of prompt {prompt.index} is all thinking; with thinking={thinking} nothing of it would be "
            "learned. Leave such rows out, or supervise the thinking."
        )
    if thinking == "skipped":
        return replace(prompt, unsupervised_spans=(*prompt.unsupervised_spans, (0, start)))
    spans = tuple((max(a - start, 0), b - start) for a, b in prompt.unsupervised_spans if b > start)
    return replace(prompt, response=response[start:].decode(), unsupervised_spans=spans)


def targets(prompt: Prompt, ids: list[int], tokenizer: ModelTokenizer) -> list[int]:
    """What each token of a response, and its stop, is to be predicted as: itself, or NO_TARGET in an unsupervised span.

    A token counts as in a span if any of its bytes is.

    Args:
        ids: of prompt.response, without the stop.

    Raises:
        PromptDataError: for spans that are not within the response.
    """
    own = [*ids, tokenizer.stop_ids[0]]
    if not prompt.unsupervised_spans:
        return own
    num_bytes = len((prompt.response or "").encode())
    lengths = [len(tokenizer.table.join([token])) for token in ids]
    first = num_bytes - sum(lengths)  # -1 where the tokenizer puts a space in front
    edges = list(itertools.accumulate([*lengths, 1], initial=first))
    if not all(0 <= start < end <= num_bytes + 1 for start, end in prompt.unsupervised_spans):
        raise PromptDataError(
            f"Prompt {prompt.index} has unsupervised_spans {prompt.unsupervised_spans}; expected (start, end) with "
            f"0 <= start < end <= {num_bytes + 1}: the bytes of its response, and one for the stop."
        )
    return [
        NO_TARGET if any(start < b and a < end for a, b in prompt.unsupervised_spans) else token
        for token, start, end in zip(own, edges, edges[1:], strict=False)
    ]


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

    def forward(self, examples: Sequence[Example]) -> Tensor:
        """Cross-entropy summed over the targets of a micro-batch, in nats.

        Without examples one token is read, and a zero runs backward: ranks that share a model stay in step.
        """
        states = self.layout.states(self.model, [e.prompt_ids for e in examples], [e.response_ids for e in examples])
        device = states.hidden_NH.device
        target_N = torch.tensor([i for e in examples for i in e.target_ids], dtype=torch.int64, device=device)
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
