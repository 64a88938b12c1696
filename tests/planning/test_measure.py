"""What a model without storage is measured to hold, against the same model with its weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from transformers import AutoConfig, AutoModelForCausalLM, MambaConfig, PretrainedConfig

from benchmarks.memory_checks import saved_bytes, tiny_configs
from simct_pl.errors import UnsupportedModelError
from simct_pl.models.lm_head import response_states
from simct_pl.planning import live_bytes
from simct_pl.planning.live_bytes import LiveBytes, SizesOnly
from simct_pl.planning.measure import ModelSize, ModelSource, SizedModel

CONFIGS = tiny_configs()


def states(model: object) -> Tensor:
    return response_states(model, [[1] * 5, [2] * 9], [[3] * 60, [4] * 40]).hidden_NH  # type: ignore[arg-type]


@pytest.fixture(params=CONFIGS)
def config(request: pytest.FixtureRequest) -> PretrainedConfig:
    return CONFIGS[request.param]


def test_a_model_without_storage_has_the_same_parts(config: PretrainedConfig) -> None:
    model = AutoModelForCausalLM.from_config(config)
    sized = SizedModel(ModelSource(config), torch.bfloat16)
    assert sized.size == ModelSize.of(model)
    assert sized.size.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert len(sized.size.blocks) == 3
    assert sized.size.outside == sized.size.parameters - sum(sized.size.blocks)
    assert all(isinstance(parameter, FakeTensor) for parameter in sized.model.parameters())


@pytest.mark.parametrize("checkpointing", [False, True])
def test_forward_and_backward_hold_what_they_hold_with_weights(config: PretrainedConfig, checkpointing: bool) -> None:
    """`kept` against what autograd saves, `most` against the tensors alive in the real run."""
    sized = SizedModel(ModelSource(config), torch.float32)
    found = sized.training(lambda: states(sized.model), checkpointing=checkpointing)
    model = AutoModelForCausalLM.from_config(config).train()
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    # Checkpointing keeps rotary embeddings and masks in closures, where autograd does not see them.
    saved = saved_bytes(model, lambda: states(model))
    assert saved <= found.kept * 1.01
    assert found.kept == pytest.approx(saved, rel=0.1 if checkpointing else 0.03)
    with LiveBytes() as alive:
        result = states(model)
        result.backward(torch.zeros_like(result))
    assert found.most == pytest.approx(alive.most, rel=0.03)


def test_autocast_keeps_its_copies_of_the_weights() -> None:
    config = CONFIGS["Llama"]
    kept = {}
    for autocast in (False, True):
        sized = SizedModel(ModelSource(config), torch.float32)
        run = lambda: response_states(sized.model, [[1]], [[2]]).hidden_NH  # noqa: B023, E731
        kept[autocast] = sized.training(run, checkpointing=False, autocast=autocast).kept
    matrices = 3 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 160)
    assert kept[True] - kept[False] == pytest.approx(2 * matrices, rel=0.05)  # less what two tokens keep in bf16


@pytest.mark.parametrize(("name", "heads", "head_dim"), [("Llama", 2, 16), ("Qwen3", 2, 32), ("GPT-2", 4, 16)])
def test_a_cache_holds_keys_and_values(name: str, heads: int, head_dim: int) -> None:
    sized = SizedModel(ModelSource(CONFIGS[name]), torch.bfloat16)
    assert sized.cache(50) == 2 * 3 * 50 * heads * head_dim * 2


def test_a_sliding_layer_caches_its_window_alone() -> None:
    """All three layers of the tiny Gemma-3 slide over 32 tokens; one more makes room for the next."""
    assert CONFIGS["Gemma-3"].layer_types == ["sliding_attention"] * 3
    sized = SizedModel(ModelSource(CONFIGS["Gemma-3"]), torch.bfloat16)
    assert sized.cache(500) == pytest.approx(2 * 3 * 31 * 2 * 24 * 2, rel=0.01)  # and a counter a layer


def test_a_long_mask_is_not_computed() -> None:
    """16,000 tokens in a window of 32: the mask alone would be 256 MB, the states of eager attention far more."""
    sized = SizedModel(ModelSource(CONFIGS["Gemma-3"]), torch.bfloat16)
    found = sized.reading(lambda: response_states(sized.model, [[1]], [[2] * 16_000]).hidden_NH)
    assert found > 16_000**2


def test_long_context_rotary_embeddings_are_decided_by_the_real_length() -> None:
    """Phi-3's longrope asks whether the longest position is beyond the original context."""
    scaling = {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
    config = tiny_configs()["Phi-3"]
    config.rope_parameters = {**scaling, "rope_theta": 1e4, "original_max_position_embeddings": 32}
    config.original_max_position_embeddings = 32
    sized = SizedModel(ModelSource(config), torch.bfloat16)
    assert sized.reading(lambda: states(sized.model)) > 0


def test_what_cannot_be_followed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_bytes, "MOST_OPERATORS", 2000)
    config = MambaConfig(vocab_size=100, hidden_size=32, num_hidden_layers=2)
    token_by_token = SizedModel(ModelSource(config), torch.float32)
    with pytest.raises(UnsupportedModelError, match="more than 2,000 operators"):
        token_by_token.reading(lambda: response_states(token_by_token.model, [[1] * 100], [[2] * 400]).hidden_NH)
    sized = SizedModel(ModelSource(CONFIGS["Llama"]), torch.float32)
    with pytest.raises(UnsupportedModelError, match="decides by values"):
        sized.reading(lambda: states(sized.model).nonzero())


def test_what_is_no_causal_language_model_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="vit"):
        SizedModel(ModelSource(AutoConfig.for_model("vit")), torch.float32)


# ---- the instrument ----


def test_bytes_alive_are_counted_and_forgotten() -> None:
    values = torch.ones(1000)  # 4,000 bytes, from before
    with LiveBytes() as alive:
        total = values.view(10, 100).add(1).exp_()
        copy = total + total
        assert alive.forget_peak() == 8000
        del total
        copy.sum()
    assert (alive.live, alive.most) == (4000, 8000)


def test_small_tensors_of_the_host_keep_their_values() -> None:
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with fake:
        weight = torch.zeros(10)
    with SizesOnly(fake):
        position = torch.arange(10)
        assert int(position.max()) == 9
        assert isinstance(weight[position], FakeTensor)
        assert isinstance(torch.arange(live_bytes.MOST_COMPUTED + 1), FakeTensor)
