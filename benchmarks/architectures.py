"""The sizes of published models, for the tables of docs/scaling.md and the checks of predicted memory."""

from __future__ import annotations

from transformers import Gemma2Config, LlamaConfig, Phi3Config, PretrainedConfig, Qwen2Config


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
    }
