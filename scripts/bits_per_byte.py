"""Model folders and reference answers in, bits per byte of each model on the answers out: one line a model.

    python scripts/bits_per_byte.py --data $GSM8K/test.jsonl --limit 50 MODEL [MODEL …]

Bits per byte compares models with different tokenizers: -log2 p(answer | question) over the answer's UTF-8 bytes. The
question is rendered by each model's own template; the stop is not counted. GSM8K's calculator notes (`<<1+1=2>>`) are
removed, since no model writes them unasked.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from pathlib import Path

from simct_pl.models.bits_per_byte import reference_bits
from simct_pl.models.loading import load_causal_lm
from simct_pl.tokenization.model_tokenizer import ModelTokenizer
from simct_pl.types import Prompt

CALCULATOR_NOTE = re.compile(r"<<.*?>>")


def read_pairs(path: Path, limit: int) -> list[tuple[str, str]]:
    """Return (question, answer without notes) of the first rows."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()[:limit]]
    return [(row["question"], CALCULATOR_NOTE.sub("", row["answer"])) for row in rows]


def measure(folder: str, pairs: list[tuple[str, str]]) -> str:
    """Return the line of one model."""
    start = time.perf_counter()
    tokenizer = ModelTokenizer.from_pretrained(folder)
    model = load_causal_lm("model", folder, "float32").eval()
    prompts = [
        Prompt(index, ({"role": "user", "content": question},), response=answer)
        for index, (question, answer) in enumerate(pairs)
    ]
    bits = reference_bits(model, tokenizer, prompts)
    num_tokens = sum(map(len, tokenizer.encode_batch([answer for _, answer in pairs])))
    num_bytes = sum(len(answer.encode()) for _, answer in pairs)
    return (
        f"{folder}: {bits / num_bytes:.4f} bits/byte, {num_bytes / num_tokens:.2f} bytes/token, "
        f"{len(pairs)} answers of {num_bytes} bytes, {time.perf_counter() - start:.0f} s"
    )


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="model folders")
    parser.add_argument("--data", type=Path, required=True, help="JSON lines with question and answer")
    parser.add_argument("--limit", type=int, default=50, help="the first so many rows")
    options = parser.parse_args(arguments)
    pairs = read_pairs(options.data, options.limit)
    for folder in options.models:
        print(measure(folder, pairs), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
