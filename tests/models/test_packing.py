"""Layouts: a packed row gives the states that each sequence has by itself, for every architecture and any lengths."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
)

from simct_pl.errors import UnsupportedModelError
from simct_pl.models.packing import Layout, PackedRow, PaddedRows

SMALL = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
}
CONFIGS: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**SMALL),
    "qwen2": Qwen2Config(**SMALL),
    "gemma2": Gemma2Config(**SMALL, sliding_window=5, query_pre_attn_scalar=8),  # every other layer sees five tokens
}
LENGTHS = [(3, 4), (1, 1), (9, 12), (2, 7), (5, 1), (1, 20)]


def model(name: str, attention: str = "sdpa") -> PreTrainedModel:
    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_config(CONFIGS[name], attn_implementation=attention).double().eval()
    with torch.no_grad():
        for parameter in made.parameters():  # far from zero, so that a token that should not be seen shows
            parameter.mul_(3)
    return made


def sequences(seed: int = 0) -> tuple[list[list[int]], list[list[int]]]:
    rng = random.Random(seed)
    pairs = [([rng.randrange(50) for _ in range(p)], [rng.randrange(50) for _ in range(r)]) for p, r in LENGTHS]
    return [prompt for prompt, _ in pairs], [response for _, response in pairs]


def alone(lm: PreTrainedModel, prompts: list[list[int]], responses: list[list[int]]) -> torch.Tensor:
    """Each sequence by itself, through the model's own forward with an explicit mask of ones."""
    rows = []
    for prompt, response in zip(prompts, responses, strict=True):
        ids = torch.tensor([prompt + response])
        states = lm(ids, attention_mask=torch.ones_like(ids), output_hidden_states=True).hidden_states[-1][0]
        rows.append(states[len(prompt) - 1 : len(prompt) + len(response) - 1])
    return torch.cat(rows)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("layout", [PackedRow(), PaddedRows()], ids=["packed", "padded"])
@torch.no_grad()
def test_no_sequence_sees_another(layout: Layout, name: str, attention: str) -> None:
    lm = model(name, attention)
    prompts, responses = sequences()
    found = layout.states(lm, prompts, responses)
    expected = alone(lm, prompts, responses)
    torch.testing.assert_close(found.hidden_NH, expected, rtol=1e-5, atol=1e-5)
    assert found.offsets == [0, 4, 5, 17, 24, 25]
    assert found.num_tokens == sum(p + r for p, r in LENGTHS)
    layout.verify(lm)


@torch.no_grad()
def test_other_neighbours_change_nothing() -> None:
    lm = model("llama")
    prompts, responses = sequences()
    others, other_responses = sequences(seed=1)
    first = PackedRow().states(lm, [prompts[2], others[0]], [responses[2], other_responses[0]]).hidden_NH[:12]
    second = PackedRow().states(lm, [others[3], prompts[2]], [other_responses[3], responses[2]]).hidden_NH[7:]
    torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_model_that_looks_across_is_refused() -> None:
    lm = model("llama")
    forward = lm.model.forward

    def without_positions(position_ids: torch.Tensor, **inputs: object) -> object:
        return forward(**inputs)

    lm.model.forward = without_positions
    with pytest.raises(UnsupportedModelError, match="one sees the other"):
        PackedRow().verify(lm)


@given(st.lists(st.integers(1, 40), max_size=30), st.integers(1, 60))
def test_every_sequence_is_in_one_row_and_rows_hold_what_they_may(lengths: list[int], max_tokens: int) -> None:
    groups = PackedRow().groups(lengths, max_tokens)
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    for group in groups:
        assert len(group) == 1 or sum(lengths[i] for i in group) <= max_tokens
    if lengths and max(lengths) <= max_tokens:  # first fit: no two rows could be one
        sizes = sorted(sum(lengths[i] for i in group) for group in groups)
        assert len(sizes) == 1 or sizes[0] + sizes[1] > max_tokens


def test_a_forward_without_sequences_reads_one_token_and_keeps_none() -> None:
    states = PackedRow().states(model("llama"), [], [])
    assert states.hidden_NH.shape == (0, 32)
    assert states.hidden_NH.requires_grad
