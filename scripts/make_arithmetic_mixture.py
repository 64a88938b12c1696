"""Writes simct_pl/assets/mixture: three small files of chained additions, with the faults that real sources have.

additions.jsonl   training problems of two or three terms, with a level
collected.jsonl   more of them, some already in additions.jsonl in another spelling, some of held_out.jsonl, some broken
held_out.jsonl    problems that are never trained on

    python scripts/make_arithmetic_mixture.py
"""

from __future__ import annotations

import json
import random
from pathlib import Path

from simct_pl.tasks.arithmetic import Problem, distinct_problems

FOLDER = Path(__file__).resolve().parent.parent / "simct_pl/assets/mixture"
NUM_ADDITIONS, NUM_COLLECTED, NUM_HELD_OUT = 480, 300, 200
NUM_REPEATED, NUM_LEAKED, NUM_BROKEN = 40, 20, 5


def files() -> dict[str, list[dict[str, object]]]:
    """The rows of each file."""
    held_out = distinct_problems(0, NUM_HELD_OUT, 3, 50, held_out=True)
    easy = distinct_problems(1, NUM_ADDITIONS // 4, 2, 50, held_out=False)
    hard = distinct_problems(2, NUM_ADDITIONS - len(easy), 3, 50, held_out=False)
    others = [p for p in distinct_problems(3, NUM_COLLECTED + 50, 3, 50, held_out=False) if p not in set(hard)]
    additions = [_row(p, "easy") for p in easy] + [_row(p, "hard") for p in hard]
    rng = random.Random(0)
    rng.shuffle(additions)
    collected: list[dict[str, object]] = [{"prompt": p.question, "gold": p.total} for p in others[:NUM_COLLECTED]]
    collected += [{"prompt": _spaced(p), "gold": p.total} for p in hard[:NUM_REPEATED]]
    collected += [{"prompt": _spaced(p), "gold": p.total} for p in held_out[:NUM_LEAKED]]
    collected += [{"prompt": "", "gold": i} for i in range(NUM_BROKEN)]
    rng.shuffle(collected)
    return {
        "additions.jsonl": additions,
        "collected.jsonl": collected,
        "held_out.jsonl": [{"question": p.question, "response": p.response, "total": p.total} for p in held_out],
    }


def _row(problem: Problem, level: str) -> dict[str, object]:
    return {"question": problem.question, "answer": f"{problem.response}\n#### {problem.total}", "level": level}


def _spaced(problem: Problem) -> str:
    """The same problem as somebody else would type it."""
    return " + ".join(map(str, problem.terms)) + " ?"


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, rows in files().items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (FOLDER / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
