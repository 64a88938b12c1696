"""The sizes of published models, for the tables of docs/scaling.md; and tiny ones of many architectures."""

from __future__ import annotations

from typing import Any

from transformers import (
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MixtralConfig,
    Phi3Config,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

SIZES: dict[str, Any] = {
    "vocab_size": 1000,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def published_configs() -> dict[str, PretrainedConfig]:
    """The sizes of published models, as in their own config.json."""
    return {
        "Qwen2.5-7B-Instruct": Qwen2Config(
            num_hidden_layers=28,
            hidden_size=3584,
            intermediate_size=18_944,
            num_attention_heads=28,
            num_key_value_heads=4,
            vocab_size=152_064,
            tie_word_embeddings=False,
        ),
        "Qwen2.5-32B-Instruct": Qwen2Config(
            num_hidden_layers=64,
            hidden_size=5120,
            intermediate_size=27_648,
            num_attention_heads=40,
            num_key_value_heads=8,
            vocab_size=152_064,
            tie_word_embeddings=False,
        ),
        "Gemma-2-2B-it": Gemma2Config(
            num_hidden_layers=26,
            hidden_size=2304,
            intermediate_size=9216,
            num_attention_heads=8,
            num_key_value_heads=4,
            head_dim=256,
            vocab_size=256_000,
            sliding_window=4096,
        ),
        "Phi-4-mini-instruct": Phi3Config(
            num_hidden_layers=32,
            hidden_size=3072,
            intermediate_size=8192,
            num_attention_heads=24,
            num_key_value_heads=8,
            vocab_size=200_064,
            tie_word_embeddings=True,
            pad_token_id=199_999,
        ),
        "Llama-3.2-1B": LlamaConfig(
            num_hidden_layers=16,
            hidden_size=2048,
            intermediate_size=8192,
            num_attention_heads=32,
            num_key_value_heads=8,
            head_dim=64,
            vocab_size=128_256,
            tie_word_embeddings=True,
        ),
        "Qwen3-1.7B": Qwen3Config(
            num_hidden_layers=28,
            hidden_size=2048,
            intermediate_size=6144,
            num_attention_heads=16,
            num_key_value_heads=8,
            head_dim=128,
            vocab_size=151_936,
            tie_word_embeddings=True,
        ),
        "Qwen3-8B": Qwen3Config(
            num_hidden_layers=36,
            hidden_size=4096,
            intermediate_size=12_288,
            num_attention_heads=32,
            num_key_value_heads=8,
            head_dim=128,
            vocab_size=151_936,
            tie_word_embeddings=False,
        ),
        "Gemma-3-1B-it": Gemma3TextConfig(
            num_hidden_layers=26,
            hidden_size=1152,
            intermediate_size=6912,
            num_attention_heads=4,
            num_key_value_heads=1,
            head_dim=256,
            vocab_size=262_144,
            sliding_window=512,
        ),
    }


def tiny_configs(**sizes: int) -> dict[str, PretrainedConfig]:
    """Configurations of architectures that differ in norms, attention, windows, biases and experts."""
    shape = {**SIZES, **sizes}
    gpt2 = {"n_embd": shape["hidden_size"], "n_layer": shape["num_hidden_layers"], "n_head": 4, "n_positions": 4096}
    return {
        "Llama": LlamaConfig(**shape),
        "Qwen3": Qwen3Config(**shape, head_dim=32),
        "Gemma-3": Gemma3TextConfig(**shape, head_dim=24, sliding_window=32, query_pre_attn_scalar=24),
        "Phi-3": Phi3Config(**shape),
        "GPT-2": GPT2Config(**gpt2, vocab_size=shape["vocab_size"], attn_pdrop=0.0),
        "Mixtral": MixtralConfig(**shape, num_local_experts=4),
    }
