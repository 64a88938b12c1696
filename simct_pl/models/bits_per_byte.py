"""Bits per byte of reference responses: compares models with different tokenizers on the same text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch.nn import functional as F
from transformers import PreTrainedModel

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
    prompt_ids = [tokenizer.render_prompt(prompt.messages) for prompt in prompts]
    response_ids = tokenizer.encode_batch([prompt.response or "" for prompt in prompts])
    references = [Reference(p, r) for p, r in zip(prompt_ids, response_ids, strict=True)]
    lengths = [len(p) + len(r) for p, r in references]
    return [[references[i] for i in members] for members in pack_by_length(lengths, micro_batch_tokens)]


@torch.no_grad()
def bits_of(model: PreTrainedModel, references: Sequence[Reference], chunk_tokens: int = 1024) -> float:
    """The bits of one forward."""
    head, bits = LMHead.of(model), 0.0
    states = response_states(model, [r.prompt_ids for r in references], [r.response_ids for r in references])
    targets_N = torch.tensor([token for r in references for token in r.response_ids], dtype=torch.int64)
    chunks = zip(states.hidden_NH.split(chunk_tokens), targets_N.split(chunk_tokens), strict=True)
    for hidden_NH, target_N in chunks:
        logits_NK = head(hidden_NH).float()
        bits += F.cross_entropy(logits_NK, target_N.to(logits_NK.device), reduction="sum").item() / math.log(2)
    return bits
