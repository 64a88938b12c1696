"""The process behind MathVerifier: pairs of a gold answer and an answer as JSON lines in, one word a line out."""

from __future__ import annotations

import json
import resource
import sys

MEMORY_MB = 4096  # sympy can be made to compute 9**9**9


def main() -> None:
    """Answer until standard input ends."""
    from math_verify import LatexExtractionConfig, parse, verify

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_MB * 2**20, MEMORY_MB * 2**20))
    latex = [LatexExtractionConfig()]

    def compare(gold: str, answer: str) -> str:
        # A gold without dollar signs is not found; an answer in them is read as a whole, not searched for numbers.
        right = parse(f"${gold}$", extraction_config=latex)
        if not right:
            return "unreadable gold"
        given = parse(f"${answer}$", extraction_config=latex)
        return "right" if given and verify(right, given) else "wrong"

    print("ready", flush=True)
    for line in sys.stdin:
        pair = json.loads(line)
        try:
            found = compare(pair["gold"], pair["answer"])
        except (MemoryError, RecursionError):
            found = "wrong"
        print(found, flush=True)


if __name__ == "__main__":
    main()
