"""Bits per byte of reference responses: compares models with different tokenizers on the same text."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.nn import functional as F
from transformers import PreTrainedModel

from simct_pl.scoring.heads import LMHead, response_states
from simct_pl.scoring.microbatch import pack_by_length
from simct_pl.tokenization.model_tokenizer import ModelTokenizer
from simct_pl.types import Prompt


@torch.no_grad()
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
    head, bits = LMHead.of(model), 0.0
    prompt_ids = [tokenizer.render_prompt(prompt.messages) for prompt in prompts]
    response_ids = tokenizer.encode_batch([prompt.response or "" for prompt in prompts])
    lengths = [len(p) + len(r) for p, r in zip(prompt_ids, response_ids, strict=True)]
    for members in pack_by_length(lengths, micro_batch_tokens):
        states = response_states(model, [prompt_ids[i] for i in members], [response_ids[i] for i in members])
        targets_N = torch.tensor([token for i in members for token in response_ids[i]], device=model.device)
        chunks = zip(states.hidden_NH.split(chunk_tokens), targets_N.split(chunk_tokens), strict=True)
        for hidden_NH, target_N in chunks:
            bits += F.cross_entropy(head(hidden_NH).float(), target_N, reduction="sum").item() / math.log(2)
    return bits
