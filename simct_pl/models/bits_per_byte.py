"""Bits per byte of reference responses: compares models with different tokenizers on the same text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from transformers import PreTrainedModel

from simct_pl.models.cross_entropy import chunked_cross_entropy
from simct_pl.models.lm_head import LMHead, response_states
from simct_pl.models.microbatch import pack_by_length
from simct_pl.tokenization.model_tokenizer import ModelTokenizer
from simct_pl.types import Prompt


class Reference(NamedTuple):
    """A reference response in a model's own tokens, without a stop, and its prompt in the model's own template."""

    prompt_ids: list[int]
    response_ids: list[int]


def reference_bits(
    model: PreTrainedModel,
    tokenizer: ModelTokenizer,
    prompts: Sequence[Prompt],
    micro_batch_tokens: int = 4096,
    chunk_tokens: int = 1024,
) -> float:
    """Sum of -log2 p(response | prompt), the prompt in the model's own template, the stop not counted.

    Args:
        prompts: each with a response.
        micro_batch_tokens, chunk_tokens: padded tokens of one forward, and rows of logits that exist at a time.
    """
    return sum(bits_of(model, part, chunk_tokens) for part in pack_references(tokenizer, prompts, micro_batch_tokens))


def pack_references(
    tokenizer: ModelTokenizer, prompts: Sequence[Prompt], micro_batch_tokens: int
) -> list[list[Reference]]:
    """The prompts' responses, a list for each forward."""
    prompt_ids = [tokenizer.render(prompt) for prompt in prompts]
    response_ids = tokenizer.encode_batch([prompt.response or "" for prompt in prompts])
    references = [Reference(p, r) for p, r in zip(prompt_ids, response_ids, strict=True)]
    lengths = [len(p) + len(r) for p, r in references]
    return [[references[i] for i in members] for members in pack_by_length(lengths, micro_batch_tokens)]


@torch.no_grad()
def bits_of(model: PreTrainedModel, references: Sequence[Reference], chunk_tokens: int = 1024) -> float:
    """The bits of one forward."""
    hidden_NH = response_states(
        model, [r.prompt_ids for r in references], [r.response_ids for r in references]
    ).hidden_NH
    target_N = torch.tensor([token for r in references for token in r.response_ids], dtype=torch.int64)
    nats = chunked_cross_entropy(hidden_NH, target_N.to(hidden_NH.device), LMHead.of(model), chunk_tokens=chunk_tokens)
    return nats.item() / math.log(2)
