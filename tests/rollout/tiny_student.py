"""A student for vLLM: the quickstart's tokenizer on a random Llama with heads of a size that its CPU kernels take."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from tests.tiny import ASSETS

STOP, CONTEXT = 271, 128
QUESTIONS = ["1+2+3?", "10+20+30?", "13+25+7?", "4+40+8?", "9+9+9?", "31+2+18?"]

# What the folder's generation config says, and no engine may listen to; nor to the end tokens in its config.
HOSTILE = {"temperature": 0.01, "top_k": 1, "repetition_penalty": 5.0, "max_new_tokens": 2, "eos_token_id": STOP}


def write_student(folder: Path) -> Path:
    """A model folder; heads of 32, tied embeddings, twice as many query heads as key heads."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=275,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=CONTEXT,
        initializer_range=0.25,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=[10, 11, 12],  # ordinary tokens here
        pad_token_id=270,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(ASSETS / "student" / name, folder / name)
    (folder / "generation_config.json").write_text(json.dumps(HOSTILE))
    return folder


@torch.no_grad()
def moved(model: PreTrainedModel) -> PreTrainedModel:
    """The model with every parameter changed, frozen."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model.eval().requires_grad_(False)
