"""Trees of continuations: each path scores as a plain forward of it does, in every family, padded or not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import (
    BloomConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    OPTConfig,
    Phi3Config,
    PreTrainedModel,
    Qwen2Config,
)
from transformers.cache_utils import DynamicCache
from transformers.models.bloom.modeling_bloom import BloomForCausalLM
from transformers.models.gemma2.modeling_gemma2 import Gemma2ForCausalLM
from transformers.models.gemma3.modeling_gemma3 import Gemma3ForCausalLM
from transformers.models.gpt2.modeling_gpt2 import GPT2LMHeadModel
from transformers.models.llama.modeling_llama import LlamaForCausalLM
from transformers.models.mamba.modeling_mamba import MambaForCausalLM
from transformers.models.mistral.modeling_mistral import MistralForCausalLM
from transformers.models.opt.modeling_opt import OPTForCausalLM
from transformers.models.phi3.modeling_phi3 import Phi3ForCausalLM
from transformers.models.qwen2.modeling_qwen2 import Qwen2ForCausalLM

from simct_pl.errors import UnsupportedModelError
from simct_pl.scoring.heads import LMHead, response_states
from simct_pl.scoring.tree import Forest, Path, path_logprobs, tree_states, verify_tree
from tests.scoring.test_heads import SHAPE, build

DEEP = {**SHAPE, "num_hidden_layers": 2}
GPT2 = {"vocab_size": 32, "n_embd": 16, "n_head": 2, "n_layer": 2, "n_positions": 32}
OPT = {
    "vocab_size": 32,
    "hidden_size": 16,
    "ffn_dim": 24,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "max_position_embeddings": 32,
    "word_embed_proj_dim": 16,
}
WINDOW = 3  # shorter than the prompts, so that it is at stake
SLIDING = ["sliding_attention", "full_attention"]
FAMILIES: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": lambda: build(LlamaForCausalLM, LlamaConfig(**DEEP)),
    "eager": lambda: build(LlamaForCausalLM, LlamaConfig(**DEEP, attn_implementation="eager")),
    "grouped heads": lambda: build(LlamaForCausalLM, LlamaConfig(**{**DEEP, "num_key_value_heads": 1})),
    "qwen2": lambda: build(Qwen2ForCausalLM, Qwen2Config(**DEEP)),
    "qwen2, sliding": lambda: build(
        Qwen2ForCausalLM,
        Qwen2Config(**DEEP, use_sliding_window=True, sliding_window=WINDOW, layer_types=SLIDING),
    ),
    "mistral, sliding": lambda: build(MistralForCausalLM, MistralConfig(**DEEP, sliding_window=WINDOW)),
    "phi3": lambda: build(Phi3ForCausalLM, Phi3Config(**DEEP)),
    "phi3, sliding": lambda: build(Phi3ForCausalLM, Phi3Config(**DEEP, sliding_window=WINDOW)),
    "gemma2": lambda: build(
        Gemma2ForCausalLM,
        Gemma2Config(**DEEP, head_dim=8, sliding_window=WINDOW, attn_implementation="eager", layer_types=SLIDING),
    ),
    "gemma2, sdpa": lambda: build(Gemma2ForCausalLM, Gemma2Config(**DEEP, head_dim=8, sliding_window=WINDOW)),
    "gemma3": lambda: build(
        Gemma3ForCausalLM, Gemma3TextConfig(**DEEP, head_dim=8, sliding_window=WINDOW, layer_types=SLIDING)
    ),
    "gpt2": lambda: build(GPT2LMHeadModel, GPT2Config(**GPT2)),
    "opt": lambda: build(OPTForCausalLM, OPTConfig(**OPT)),
}
every_family = pytest.mark.parametrize("family", FAMILIES)

PROMPTS = [[3, 1, 4], [1, 5], [9, 2, 6, 5, 3]]
RESPONSES = [[5, 8, 9, 7, 9, 3, 2], [3], [8, 4, 6]]
PATHS = [
    Path(0, 0, (6, 7, 8)),
    Path(0, 0, (6, 7, 9, 10)),  # shares two nodes with the one before
    Path(0, 2, (9, 7, 1, 2)),  # follows the response for two tokens
    Path(0, 6, (2, 5)),  # the response's last token, whose state is not kept
    Path(2, 1, (11, 12)),
    Path(2, 1, (11,)),  # nothing later
    Path(1, 0, (4, 4, 4, 4, 4)),
]


def tree_logprobs(model: PreTrainedModel, paths: list[Path] = PATHS, chunk_tokens: int = 3) -> Tensor:
    forest, cache = Forest.grow(RESPONSES, paths), DynamicCache()
    main = response_states(model, PROMPTS, RESPONSES, cache)
    nodes = tree_states(model, cache, list(map(len, PROMPTS)), forest.trees)
    return path_logprobs(torch.cat([main.hidden_NH, nodes]), forest, LMHead.of(model), chunk_tokens)


def plain_logprob(model: PreTrainedModel, path: Path) -> Tensor:
    """The path's later tokens, read by the model's own forward of this sequence alone."""
    context = [*PROMPTS[path.response], *RESPONSES[path.response][: path.start]]
    ids = torch.tensor([[*context, *path.ids]])
    logp_SK = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0].log_softmax(-1)
    later = [logp_SK[len(context) + i - 1, path.ids[i]] for i in range(1, len(path.ids))]
    return torch.stack(later).sum() if later else logp_SK.new_zeros(())


@every_family
@torch.no_grad()
def test_paths_score_as_in_plain_forwards(family: str) -> None:
    model = FAMILIES[family]()
    expected = torch.stack([plain_logprob(model, path) for path in PATHS])
    torch.testing.assert_close(tree_logprobs(model), expected, rtol=1e-5, atol=1e-5)
    verify_tree(model)


@pytest.mark.parametrize("family", ["llama", "eager", "gemma2", "gpt2"])
def test_gradients_are_those_of_plain_forwards(family: str) -> None:
    model = FAMILIES[family]().double()
    weight_P = torch.linspace(-1, 1, len(PATHS), dtype=torch.float64)
    (tree_logprobs(model) * weight_P).sum().backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    (torch.stack([plain_logprob(model, path) for path in PATHS]) * weight_P).sum().backward()
    assert len(found) > 5
    for name, gradient in found.items():
        # RMSNorm works in fp32 whatever the model's dtype; GPT-2 has none.
        rtol, atol = (1e-8, 1e-10) if family == "gpt2" else (1e-4, 1e-5)
        torch.testing.assert_close(gradient, model.get_parameter(name).grad, rtol=rtol, atol=atol)


def test_shared_beginnings_are_read_once() -> None:
    trees = Forest.grow(RESPONSES, PATHS).trees
    assert trees[0].ids == [6, 7, 9, 1, 2]  # 1 after the response's own 9 7
    assert trees[0].parents == [-1, 0, 1, -1, -1]
    assert trees[0].anchors == [0, 0, 0, 4, 6]
    assert trees[0].positions == [0, 1, 2, 4, 6]
    assert [len(tree) for tree in trees] == [5, 4, 1]


def test_without_paths_nothing_is_read() -> None:
    model = FAMILIES["llama"]()
    forest = Forest.grow(RESPONSES, [])
    assert forest.num_nodes == 0
    assert tree_states(model, DynamicCache(), list(map(len, PROMPTS)), forest.trees).shape == (0, 16)
    assert tree_logprobs(model, []).shape == (0,)


@torch.no_grad()
def test_the_default_forward_is_untouched_by_a_cache() -> None:
    model = FAMILIES["llama"]()
    plain = response_states(model, PROMPTS, RESPONSES)
    cached = response_states(model, PROMPTS, RESPONSES, DynamicCache())
    assert torch.equal(plain.hidden_NH, cached.hidden_NH)


@pytest.mark.parametrize(
    "model",
    [
        lambda: build(BloomForCausalLM, BloomConfig(vocab_size=32, hidden_size=16, n_layer=2, n_head=2)),
        lambda: build(MambaForCausalLM, MambaConfig(vocab_size=32, hidden_size=16, num_hidden_layers=2)),
    ],
    ids=["positions from the mask", "no attention"],
)
def test_a_model_that_cannot_read_trees_is_refused(model: Callable[[], PreTrainedModel]) -> None:
    with pytest.raises(UnsupportedModelError, match="tree of continuations"):
        verify_tree(model())
