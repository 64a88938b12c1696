"""Heads: hidden states to logits exactly as the model's own forward does, whatever the family puts in between."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from transformers import (
    CohereConfig,
    Gemma2Config,
    GraniteConfig,
    LlamaConfig,
    PhiConfig,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.models.cohere.modeling_cohere import CohereForCausalLM
from transformers.models.gemma2.modeling_gemma2 import Gemma2ForCausalLM
from transformers.models.granite.modeling_granite import GraniteForCausalLM
from transformers.models.llama.modeling_llama import LlamaForCausalLM
from transformers.models.phi.modeling_phi import PhiForCausalLM

from simct_pl.errors import UnsupportedModelError
from simct_pl.models.lm_head import LMHead, verify_head

SHAPE = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "initializer_range": 0.5,
}


def build(model_class: type[PreTrainedModel], config: PretrainedConfig) -> PreTrainedModel:
    torch.manual_seed(0)
    model = model_class(config).eval()
    projection = model.get_output_embeddings()
    if getattr(projection, "bias", None) is not None:
        torch.nn.init.normal_(projection.bias)
    return model


FAMILIES: dict[str, Callable[[], PreTrainedModel]] = {
    "tied": lambda: build(LlamaForCausalLM, LlamaConfig(**SHAPE, tie_word_embeddings=True)),
    "untied": lambda: build(LlamaForCausalLM, LlamaConfig(**SHAPE, tie_word_embeddings=False)),
    "soft-capped": lambda: build(Gemma2ForCausalLM, Gemma2Config(**SHAPE, head_dim=8, final_logit_softcapping=2.0)),
    "biased": lambda: build(PhiForCausalLM, PhiConfig(**SHAPE)),
    "scaled up": lambda: build(CohereForCausalLM, CohereConfig(**SHAPE, logit_scale=0.25)),
    "scaled down": lambda: build(GraniteForCausalLM, GraniteConfig(**SHAPE, logits_scaling=8.0)),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_head_equals_the_models_own_forward(family: str) -> None:
    model = FAMILIES[family]()
    ids = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])
    with torch.no_grad():
        hidden = model.get_decoder()(input_ids=ids).last_hidden_state
        torch.testing.assert_close(LMHead.of(model)(hidden), model(input_ids=ids).logits)
    verify_head(model)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_temperature_divides_what_the_model_says(family: str) -> None:
    """After the soft-cap, and in the two parts of a chunk too, with their gradient."""
    model = FAMILIES[family]()
    head = replace(LMHead.of(model), temperature=0.4)
    ids = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])
    with torch.no_grad():
        hidden = model.get_decoder()(input_ids=ids).last_hidden_state
        expected = model(input_ids=ids).logits / 0.4
        projected = head.projection(hidden)
    torch.testing.assert_close(head(hidden), expected)
    squashed = head.squash_(projected.clone())
    torch.testing.assert_close(head.expand(squashed), expected)
    inputs, weights = projected.clone().requires_grad_(), torch.randn_like(expected)
    (wanted,) = torch.autograd.grad((head.finish(inputs) * weights).sum(), inputs)
    last_factor = head.expand(torch.ones(()))
    head.squash_backward_(squashed, weights * last_factor)
    torch.testing.assert_close(squashed, wanted)


def test_padded_vocabulary_rows_stay_in_the_logits() -> None:
    """A head may have more rows than the tokenizer has tokens; they are part of the softmax as the model sees it."""
    model = FAMILIES["tied"]()
    model.resize_token_embeddings(40)
    with torch.no_grad():
        assert LMHead.of(model)(torch.zeros(2, 16)).shape == (2, 40)
    verify_head(model)


def test_a_head_with_something_else_up_its_sleeve_is_refused() -> None:
    class Shifted(LlamaForCausalLM):
        def forward(self, *args, **kwargs):
            output = super().forward(*args, **kwargs)
            output.logits = output.logits * 1.5
            return output

    with pytest.raises(UnsupportedModelError, match="Shifted"):
        verify_head(build(Shifted, LlamaConfig(**SHAPE)))


def test_verifying_leaves_the_training_mode_alone() -> None:
    model = FAMILIES["tied"]().train()
    verify_head(model)
    assert model.training
