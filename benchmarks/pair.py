"""A tiny student and teacher, random weights and real tokenizers: Qwen's 151k tokens against DeepSeek's 129k.

Random weights would sample random ids, half of them pieces of characters that no other tokenizer can read. The
student's tied embedding is therefore given one constant coordinate, positive for tokens that are a space and a word
and negative for all others: it speaks words, never stops before the length limit, and everything else about it is
random. Of its units, 83 % are one token on both sides; in English prose it is nine in ten.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tests.tokenization.real import real_tokenizer

WORD = re.compile("Ġ[a-z]+")  # byte-level BPE writes a space as Ġ
# The generation prompt ends with a word: a state has the coordinate of its input token.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }} says {{ message['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}assistant says{% endif %}"
)
HEAD_WIDTH = 32
CONTEXT = 16_384
GAP = 64.0  # nats between words and all other tokens, at most; exp(-64) is far from what fp32 flushes to zero


def make_pair(folder: Path, *, student_width: int, teacher_width: int, num_layers: int) -> tuple[str, str]:
    """Write a student and a teacher as model folders; returns their paths."""
    student_tokenizer, teacher_tokenizer = (_tokenizer(name) for name in ("qwen", "deepseek"))
    student = _model(student_tokenizer, student_width, num_layers, seed=0)
    _speak_words(student, student_tokenizer)
    teacher = _model(teacher_tokenizer, teacher_width, num_layers, seed=1)
    paths = []
    for name, model, tokenizer in (
        ("student", student, student_tokenizer),
        ("teacher", teacher, teacher_tokenizer),
    ):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
        paths.append(str(folder / name))
    return paths[0], paths[1]


def _tokenizer(name: str) -> PreTrainedTokenizerFast:
    """A copy with our chat template, and a pad token, which TRL asks for."""
    source = real_tokenizer(name).hf
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=source.backend_tokenizer, eos_token=source.eos_token, pad_token=source.eos_token
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _model(tokenizer: PreTrainedTokenizerFast, width: int, num_layers: int, seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=num_layers,
        num_attention_heads=width // HEAD_WIDTH,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


@torch.no_grad()
def _speak_words(student: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    is_word_V = torch.tensor([WORD.fullmatch(token) is not None for token in tokens])
    # The final norm makes the coordinate sqrt(width) at most, and the head multiplies it with ±value.
    value = GAP / 2 / student.config.hidden_size**0.5
    student.model.embed_tokens.weight[:, 0] = torch.where(is_word_V, value, -value)
