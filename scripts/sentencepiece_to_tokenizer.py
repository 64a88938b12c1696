"""A SentencePiece BPE model in, a tokenizer folder (tokenizer.json, tokenizer_config.json) out.

    python scripts/sentencepiece_to_tokenizer.py --package mistral-common --file tokenizer.model.v1 --output DIR

For vocabularies with byte fallback that put a space in front of the text, as Llama-2's and Mistral's do. Checked
against the sentencepiece library on the texts of --check, one a line; any difference is an error and writes nothing.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import sys
from pathlib import Path

from sentencepiece import SentencePieceProcessor
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

BUILT_IN_TEXTS = ("hello world", " two  spaces ", "1+22=333", "naïve café — 東京 😀", "a\tb\nc", "<s> </s> [INST]", "")


def merges_of(processor: SentencePieceProcessor, vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    """Return the merges in the order in which SentencePiece makes them: by the score of what they make.

    A piece can be made in several ways; all have its rank, and the tokenizers library takes the leftmost at a rank,
    as SentencePiece does.
    """
    merges = []
    for piece, token_id in vocabulary.items():
        splits = [(piece[:i], piece[i:]) for i in range(1, len(piece))]
        known = [(left, right) for left, right in splits if left in vocabulary and right in vocabulary]
        known.sort(key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
        merges += [(processor.get_score(token_id), pair) for pair in known]
    merges.sort(key=lambda entry: -entry[0])  # stable, so that the ways to make one piece stay together
    return [pair for _, pair in merges]


def convert(processor: SentencePieceProcessor) -> PreTrainedTokenizerFast:
    """Build the tokenizer; its control tokens are the model's."""
    ids = range(processor.get_piece_size())
    vocabulary = {processor.id_to_piece(i): i for i in ids}
    unknown = processor.id_to_piece(processor.unk_id())
    model = models.BPE(
        vocab=vocabulary,
        merges=merges_of(processor, vocabulary),
        unk_token=unknown,
        byte_fallback=True,
        fuse_unk=True,
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    control = [processor.id_to_piece(i) for i in ids if processor.is_control(i) or processor.is_unknown(i)]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    stop = processor.id_to_piece(processor.eos_id())
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=processor.id_to_piece(processor.bos_id()),
        eos_token=stop,
        pad_token=stop,
        unk_token=unknown,
    )


def differences(processor: SentencePieceProcessor, tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> list[str]:
    """Return the texts of which the two make different ids; no text becomes a control token on either side."""
    backend = tokenizer.backend_tokenizer
    backend.encode_special_tokens = True
    found = backend.encode_batch(texts, add_special_tokens=False)
    different = [text for text, ours in zip(texts, found, strict=True) if ours.ids != processor.encode(text)]
    backend.encode_special_tokens = False
    return different


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--package", required=True, help="an installed package that ships the .model file")
    parser.add_argument("--file", required=True, help="the file's name")
    parser.add_argument("--output", type=Path, required=True, help="the folder to write")
    parser.add_argument("--check", type=Path, help="a UTF-8 file of texts, one a line")
    options = parser.parse_args(arguments)
    [path] = [f.locate() for f in importlib.metadata.files(options.package) or [] if f.name == options.file]
    processor = SentencePieceProcessor(model_file=str(path))
    tokenizer = convert(processor)
    texts = [*BUILT_IN_TEXTS, *(options.check.read_text(encoding="utf-8").splitlines() if options.check else [])]
    different = differences(processor, tokenizer, texts)
    if different:
        print(f"{len(different)} of {len(texts)} texts get other ids, for example {different[0]!r}")
        return 1
    tokenizer.save_pretrained(options.output)
    print(f"{options.output}: {len(tokenizer)} tokens; equal to sentencepiece on {len(texts)} texts")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
