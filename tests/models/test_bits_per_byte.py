"""Bits of reference responses, cut into small pieces, against plain forwards."""

from __future__ import annotations

import math

import pytest
import torch

from simct_pl.models.bits_per_byte import reference_bits
from tests.tiny import distill_module, sampled


def test_bits_against_a_plain_forward() -> None:
    module = distill_module()
    prompts = [rollout.prompt for rollout in sampled(module, 3)]
    bits = reference_bits(module.student, module.pair.student, prompts, micro_batch_tokens=64, chunk_tokens=5)
    expected = 0.0
    for prompt in prompts:
        first = module.pair.student.render_prompt(list(prompt.messages))
        response = module.pair.student.encode(prompt.response or "")
        with torch.no_grad():
            logp = module.student(torch.tensor([first + response])).logits[0].log_softmax(-1)
        expected -= sum(float(logp[len(first) - 1 + i, token]) for i, token in enumerate(response)) / math.log(2)
    assert bits == pytest.approx(expected, rel=1e-5)
