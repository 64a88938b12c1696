"""Byte-level BPE tokenizers that cut the same arithmetic differently, and untrained model folders around them.

The teacher reads characters, and "total" as one token. The student merges a space with the digit behind it, and reads
" total" as two tokens. So ` 38, total 38` is

    teacher  `_` `3` `8` `,` `_` `total` `_` `3` `8`        student  `_3` `8` `,` `_to` `tal` `_3` `8`

All hold all 256 bytes, so each can write any text. The two differ in chat template, turn-end token and BOS as real
families do. A second teacher reads numbers two digits at a time from the left (`138` as `13` `8`), as Llama-3 reads
them three at a time.
"""

from __future__ import annotations

import argparse
import itertools
from dataclasses import dataclass, replace
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import GenerationConfig, LlamaConfig, PreTrainedTokenizerFast

DIGITS = "0123456789"
SPACE = "Ġ"  # how the byte-level alphabet spells a space

TEACHER_MERGES = [("t", "o"), ("to", "t"), ("tot", "a"), ("tota", "l")]
TWO_DIGIT_MERGES = [*itertools.product(DIGITS, DIGITS), *TEACHER_MERGES]
WORD_MERGES = [("t", "o"), (SPACE, "to"), ("a", "l"), ("t", "al")]
STUDENT_MERGES = [*[(SPACE, digit) for digit in DIGITS], *WORD_MERGES]

TEACHER_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
STUDENT_TEMPLATE = (
    "{% for message in messages %}{{ '<' + message['role'] + '>' + message['content'] + '</turn>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
MAX_POSITIONS = 128


@dataclass(frozen=True)
class TinyModel:
    """One side of the example: its tokenizer and the shape of its Llama-style network.

    split_pattern: a regular expression; each match is merged within itself alone.
    """

    merges: list[tuple[str, str]]
    template: str
    special_tokens: tuple[str, ...]
    stop: str
    pad: str
    bos: str | None
    width: int
    mlp_width: int
    split_pattern: str | None = None

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer; its id order is bytes, merges, special tokens."""
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        vocabulary = {token: i for i, token in enumerate([*alphabet, *("".join(pair) for pair in self.merges)])}
        backend = Tokenizer(models.BPE(vocab=vocabulary, merges=self.merges))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        if self.split_pattern is not None:
            split = pre_tokenizers.Split(Regex(self.split_pattern), "isolated")
            backend.pre_tokenizer = pre_tokenizers.Sequence([split, backend.pre_tokenizer])
        backend.decoder = decoders.ByteLevel()
        backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in self.special_tokens])
        if self.bos is not None:  # a plain call adds BOS, as Llama's and Gemma's do
            bos_id = backend.token_to_id(self.bos)
            backend.post_processor = processors.TemplateProcessing(
                single=f"{self.bos} $A", pair=f"{self.bos} $A $B", special_tokens=[(self.bos, bos_id)]
            )
        return PreTrainedTokenizerFast(
            tokenizer_object=backend,
            bos_token=self.bos,
            eos_token=self.stop,
            pad_token=self.pad,
            chat_template=self.template,
            model_max_length=MAX_POSITIONS,
            clean_up_tokenization_spaces=False,
        )

    def config(self) -> LlamaConfig:
        """Two layers, four heads, tied embeddings."""
        tokenizer = self.tokenizer()
        return LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=self.width,
            intermediate_size=self.mlp_width,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=MAX_POSITIONS,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            architectures=["LlamaForCausalLM"],
            dtype="float32",
        )

    def save_untrained(self, folder: Path) -> None:
        """Everything of a model folder but the weights."""
        tokenizer, config = self.tokenizer(), self.config()
        tokenizer.save_pretrained(folder)
        config.save_pretrained(folder)
        GenerationConfig(
            bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id
        ).save_pretrained(folder)


TEACHER = TinyModel(
    merges=TEACHER_MERGES,
    template=TEACHER_TEMPLATE,
    special_tokens=("<|pad|>", "<|bos|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"),
    stop="<|end|>",
    pad="<|pad|>",
    bos="<|bos|>",
    width=128,
    mlp_width=256,
)
STUDENT = TinyModel(
    merges=STUDENT_MERGES,
    template=STUDENT_TEMPLATE,
    special_tokens=("<pad>", "</turn>", "<system>", "<user>", "<assistant>"),
    stop="</turn>",
    pad="<pad>",
    bos=None,
    width=96,
    mlp_width=192,
)


# A student that reads as its teacher does: the upper bound of what a student of another tokenizer can be taught.
SAME_TOKENIZER_STUDENT = replace(TEACHER, width=STUDENT.width, mlp_width=STUDENT.mlp_width)
# A teacher with coarser tokens than that student: which digit ends a number is decided inside its tokens.
TWO_DIGIT_TEACHER = replace(TEACHER, merges=TWO_DIGIT_MERGES, split_pattern=r"\d{1,2}")
# In the package, with weights: the quickstart's folders.
MODELS = {
    "teacher": TEACHER,
    "student": STUDENT,
    "same_tokenizer_student": SAME_TOKENIZER_STUDENT,
    "two_digit_teacher": TWO_DIGIT_TEACHER,
}


def merging(*others: tuple[str, str], leading: str = DIGITS) -> TinyModel:
    """The student, with a space merged into the digits of `leading` alone, and with `others` merged too."""
    return replace(STUDENT, merges=[*[(SPACE, digit) for digit in leading], *others, *WORD_MERGES])


# Students of the proofs, made where they are run. The share in the name is of their tokens in right chains that lie
# outside 1:1 units with the teacher's; the quickstart's student has 28 %.
PROOF_MODELS = {
    "mismatch_08": merging(leading=""),
    "mismatch_16": merging(leading="456"),
    "mismatch_48": merging(*itertools.product(DIGITS, "+"), *itertools.product("01234", "=")),
    "two_digit_student": replace(STUDENT, merges=TWO_DIGIT_MERGES, split_pattern=TWO_DIGIT_TEACHER.split_pattern),
}


def main() -> None:
    """Write every model of the example and of the proofs, without weights, into a folder."""
    parser = argparse.ArgumentParser(prog="python -m simct_pl.tasks.tokenizers", description=main.__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder that receives one folder a model")
    output = parser.parse_args().output
    for name, model in (MODELS | PROOF_MODELS).items():
        model.save_untrained(output / name)
        print(f"wrote {output / name}")


if __name__ == "__main__":
    main()
