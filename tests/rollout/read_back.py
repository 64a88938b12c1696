"""A Llama's weights, read back out of a running vLLM engine by their transformers names.

vLLM stacks q, k, v and gate, up; its CPU backend repacks each stack for its kernels and empties the parameter. So a
linear layer is read through the very kernel that it computes with: applied to the identity it gives its weights, each a
sum of one product with 1 and zeros, which is exact in any order of addition.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def read_back(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter of the student, and `lm_head.weight` as the head computes with it, tied or not."""
    config = model.config
    heads, kv_heads = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    found = {
        "model.embed_tokens.weight": model.model.embed_tokens.weight[: config.vocab_size],
        "model.norm.weight": model.model.norm.weight,
        "lm_head.weight": _through_kernel(model.lm_head, config.hidden_size)[: config.vocab_size],
    }
    for i, layer in enumerate(model.model.layers):
        stacks = {
            ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"): (
                layer.self_attn.qkv_proj,
                [heads, kv_heads, kv_heads],
            ),
            ("self_attn.o_proj",): (layer.self_attn.o_proj, [config.hidden_size]),
            ("mlp.gate_proj", "mlp.up_proj"): (layer.mlp.gate_up_proj, [config.intermediate_size] * 2),
            ("mlp.down_proj",): (layer.mlp.down_proj, [config.hidden_size]),
        }
        for names, (linear, sizes) in stacks.items():
            parts = _through_kernel(linear, linear.input_size).split(sizes)
            found |= {f"model.layers.{i}.{name}.weight": part for name, part in zip(names, parts, strict=True)}
        for name in ("input_layernorm", "post_attention_layernorm"):
            found[f"model.layers.{i}.{name}.weight"] = getattr(layer, name).weight
    return {name: tensor.detach().clone() for name, tensor in found.items()}


@torch.no_grad()
def _through_kernel(linear: nn.Module, input_size: int) -> Tensor:
    dtype = next(linear.parameters()).dtype
    return linear.quant_method.apply(linear, torch.eye(input_size, dtype=dtype), None).T
