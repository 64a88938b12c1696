"""Models without storage: their parts, what generation keeps of them, and what cannot be followed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from transformers import AutoConfig, AutoModelForCausalLM, MambaConfig, PretrainedConfig, PreTrainedModel

from benchmarks.architectures import tiny_configs
from simct_pl.errors import UnsupportedModelError
from simct_pl.models.lm_head import response_states
from simct_pl.rehearsal import device
from simct_pl.rehearsal.device import FakeDevice
from simct_pl.rehearsal.models import ModelSize, ModelSource, build, cache_bytes, size_of
from simct_pl.rehearsal.values import MOST_COMPUTED

CONFIGS = tiny_configs()


def reading(config: PretrainedConfig, prompt: int, response: int) -> int:
    """Most bytes of a forward without gradients."""
    mode = FakeDevice("cpu")
    model = build(ModelSource(config), torch.bfloat16, mode, "model").eval()
    before = mode.ledger.live
    with mode, torch.no_grad():
        states(model, prompt, response)
    return mode.ledger.most - before


def states(model: PreTrainedModel, prompt: int, response: int) -> Tensor:
    return response_states(model, [[1] * prompt], [[2] * response]).hidden_NH


@pytest.mark.parametrize("name", CONFIGS)
def test_a_model_without_storage_has_the_same_parts(name: str) -> None:
    mode = FakeDevice("cpu")
    without = build(ModelSource(CONFIGS[name]), torch.bfloat16, mode, "model")
    model = AutoModelForCausalLM.from_config(CONFIGS[name])
    size = size_of(ModelSource(CONFIGS[name]))
    assert size == ModelSize.of(model)
    assert size.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert len(size.blocks) == 3
    assert all(isinstance(parameter, FakeTensor) for parameter in without.parameters())
    assert mode.ledger.live == pytest.approx(2 * size.parameters, rel=0.01)  # and buffers


@pytest.mark.parametrize(("name", "heads", "head_dim"), [("Llama", 2, 16), ("Qwen3", 2, 32), ("GPT-2", 4, 16)])
def test_a_cache_holds_keys_and_values(name: str, heads: int, head_dim: int) -> None:
    assert cache_bytes(ModelSource(CONFIGS[name]), torch.bfloat16, 50) == 2 * 3 * 50 * heads * head_dim * 2


def test_a_sliding_layer_caches_its_window_alone() -> None:
    """All three layers of the tiny Gemma-3 slide over 32 tokens; one more makes room for the next."""
    assert CONFIGS["Gemma-3"].layer_types == ["sliding_attention"] * 3
    found = cache_bytes(ModelSource(CONFIGS["Gemma-3"]), torch.bfloat16, 500)
    assert found == pytest.approx(2 * 3 * 31 * 2 * 24 * 2, rel=0.01)  # and a counter a layer


def test_a_long_mask_is_not_computed() -> None:
    """16,000 tokens in a window of 32: the mask alone would be 256 MB, the states of eager attention far more."""
    assert reading(CONFIGS["Gemma-3"], 1, 16_000) > 16_000**2


def test_long_context_rotary_embeddings_are_decided_by_the_real_length() -> None:
    """Phi-3's longrope asks whether the longest position is beyond the original context."""
    scaling = {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
    config = tiny_configs()["Phi-3"]
    config.rope_parameters = {**scaling, "rope_theta": 1e4, "original_max_position_embeddings": 32}
    config.original_max_position_embeddings = 32
    assert reading(config, 5, 60) > 0


def test_what_cannot_be_followed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "MOST_OPERATORS", 2000)
    with pytest.raises(UnsupportedModelError, match="more than 2,000 operators"):
        reading(MambaConfig(vocab_size=100, hidden_size=32, num_hidden_layers=2), 100, 400)
    mode = FakeDevice("cpu")
    model = build(ModelSource(CONFIGS["Llama"]), torch.float32, mode, "model")
    with pytest.raises(UnsupportedModelError, match="decides by values"), mode:
        states(model, 3, 4).nonzero()


def test_what_is_no_causal_language_model_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="vit"):
        size_of(ModelSource(AutoConfig.for_model("vit")))


def test_small_tensors_of_the_host_keep_their_values() -> None:
    mode = FakeDevice("cpu")
    with mode.making("weights"):
        weight = torch.zeros(10)
    with mode:
        position = torch.arange(10)
        assert int(position.max()) == 9
        assert isinstance(weight[position], FakeTensor)
        assert isinstance(torch.arange(MOST_COMPUTED + 1), FakeTensor)
