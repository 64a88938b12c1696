"""States that predict response tokens: the right rows, and none that padding could have touched."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from transformers import Gemma2Config, GPT2Config, LlamaConfig, OPTConfig, PreTrainedModel
from transformers.models.gemma2.modeling_gemma2 import Gemma2ForCausalLM
from transformers.models.gpt2.modeling_gpt2 import GPT2LMHeadModel
from transformers.models.llama.modeling_llama import LlamaForCausalLM
from transformers.models.opt.modeling_opt import OPTForCausalLM

from simct_pl.models.lm_head import response_states
from tests.models.test_lm_head import SHAPE, build

# With dropout off; OPT derives its positions from the attention mask when it is given one.
FAMILIES: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": lambda: build(LlamaForCausalLM, LlamaConfig(**SHAPE)),
    "eager": lambda: build(LlamaForCausalLM, LlamaConfig(**SHAPE, attn_implementation="eager")),
    "sliding window": lambda: build(Gemma2ForCausalLM, Gemma2Config(**SHAPE, head_dim=8, sliding_window=4)),
    "gpt2": lambda: build(GPT2LMHeadModel, GPT2Config(vocab_size=32, n_embd=16, n_head=2, n_layer=2, n_positions=32)),
    "opt": lambda: build(
        OPTForCausalLM,
        OPTConfig(
            vocab_size=32,
            hidden_size=16,
            ffn_dim=24,
            num_attention_heads=2,
            num_hidden_layers=2,
            max_position_embeddings=32,
            word_embed_proj_dim=16,
        ),
    ),
}
PROMPTS = [[3, 1, 4], [1, 5], [9, 2, 6, 5, 3]]
RESPONSES = [[5, 8, 9, 7, 9, 3, 2], [3], [8, 4, 6]]


@pytest.mark.parametrize("family", FAMILIES)
def test_states_are_those_of_each_response_read_alone(family: str) -> None:
    model = FAMILIES[family]()
    with torch.no_grad():
        found = response_states(model, PROMPTS, RESPONSES)
        assert found.offsets == [0, 7, 8]
        for offset, prompt, response in zip(found.offsets, PROMPTS, RESPONSES, strict=True):
            ids = torch.tensor([prompt + response])
            alone = model.get_decoder()(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[0]
            rows = found.hidden_NH[offset : offset + len(response)]
            torch.testing.assert_close(rows, alone[len(prompt) - 1 : -1], rtol=1e-5, atol=1e-5)


def test_gradients_are_those_of_each_response_read_alone() -> None:
    model = FAMILIES["llama"]()
    response_states(model, PROMPTS, RESPONSES).hidden_NH.pow(3).sum().backward()
    together = {
        name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None
    }
    model.zero_grad()
    for prompt, response in zip(PROMPTS, RESPONSES, strict=True):
        response_states(model, [prompt], [response]).hidden_NH.pow(3).sum().backward()
    for name, gradient in together.items():
        torch.testing.assert_close(model.get_parameter(name).grad, gradient, rtol=1e-4, atol=1e-4)


def test_padding_is_counted() -> None:
    found = response_states(FAMILIES["llama"](), PROMPTS, RESPONSES)
    assert (found.num_tokens, found.num_positions) == (10 + 3 + 8, 3 * 10)


def test_an_empty_response_has_no_row() -> None:
    found = response_states(FAMILIES["llama"](), PROMPTS, [[5, 8], [], [7]])
    assert found.hidden_NH.shape == (3, 16)
    assert found.offsets == [0, 2, 2]
