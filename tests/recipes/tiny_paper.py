"""Stand-ins for the paper's three models: their architectures, tiny and random, with real tokenizers of other models.

Qwen's own ranks for Qwen2.5; Mistral's SentencePiece for Gemma-2 and DeepSeek's byte-level BPE for Phi-4-mini, with the
turn markers of the models that they stand in for.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Phi3Config,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from tests.tokenization.real import LOADERS
from tests.tokenization.small import CHATML

SIZES = {
    "num_hidden_layers": 2,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
GEMMA_TURNS = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ m.role }}\n{{ m.content }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
PHI_TURNS = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def make_models(folder: Path) -> dict[str, Path]:
    """Hub name → model folder."""
    gemma = Gemma2Config(**SIZES, head_dim=8, vocab_size=1, sliding_window=16)
    assert gemma.final_logit_softcapping == 30.0
    parts = {
        "Qwen/Qwen2.5-7B-Instruct": ("qwen", CHATML, [], Qwen2Config(**SIZES, tie_word_embeddings=False)),
        "google/gemma-2-2b-it": ("mistral", GEMMA_TURNS, ["<start_of_turn>", "<end_of_turn>"], gemma),
        "microsoft/Phi-4-mini-instruct": (
            "deepseek",
            PHI_TURNS,
            ["<|user|>", "<|assistant|>", "<|end|>"],
            Phi3Config(**SIZES, tie_word_embeddings=True, pad_token_id=0, max_position_embeddings=131_072),
        ),
    }
    return {name: _make(folder / name.partition("/")[2], *part) for name, part in parts.items()}


def _make(folder: Path, tokenizer: str, template: str, markers: list[str], config: PretrainedConfig) -> Path:
    hf: PreTrainedTokenizerFast = LOADERS[tokenizer]().hf  # a fresh one: it gets markers and a template
    hf.add_tokens(markers, special_tokens=True)
    folder.mkdir()
    hf.backend_tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"bos_token": hf.bos_token, "eos_token": hf.eos_token, "chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    config.vocab_size = len(hf) + 3  # padded, as published ones are
    config.bos_token_id, config.eos_token_id, config.pad_token_id = hf.bos_token_id, hf.eos_token_id, hf.eos_token_id
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder
