"""What the paths of one response cost a CPU: seconds while its tokens are new, milliseconds once they are known.

    python -m benchmarks.paths --write true

The tokenizers are asked about each surrounding of a token once, in the thread that aligns; later responses ask about
what is new in them. Under a teacher with Qwen's tokenizer, as in the benchmark of the alignment.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import jsonargparse
import torch
from rich.progress import Progress

from benchmarks import texts
from benchmarks.alignment import BYTE_LEVEL, KINDS, SENTENCEPIECE, TEACHER
from benchmarks.report import publish, table
from simct_pl.alignment import CommonBoundaryAligner
from simct_pl.losses.token_paths.asking import Asker
from simct_pl.losses.token_paths.path_builder import PathBuilder
from simct_pl.losses.token_paths.vocab_links import VocabLinks
from simct_pl.tokenization.pair import TokenizerPair
from simct_pl.types import UnitAlignment
from tests.tokenization.real import real_tokenizer

RESPONSE_TOKENS = 4000
PIECES = 3  # responses of each kind, one after another
REPEATS = 30
HEADERS = (
    "student, text",
    "first: s",
    "its questions",
    "second: s",
    "new questions",
    "third: s",
    "new questions",
    "known: ms",
    "teacher steps a token",
    "at a common cut",
    "entries a token, student / teacher",
)
LEGEND = """
CPU time of one thread. First, second, third: responses of {tokens:,} tokens that follow one another in the text, by a
builder that has seen nothing else. Known: the third once more, the fastest of {repeats}. Entries: of the lists that a
token's rows are summed with.
"""


def main(num_tokens: int = RESPONSE_TOKENS, write: bool = False) -> None:
    """Print the table; `--write` puts it into docs/performance.md. Minutes, more where a pair has not been linked yet.

    Args:
        num_tokens: of a response, on the student's side.
        write: publish the table.
    """
    rows = []
    with Progress() as progress:
        task = progress.add_task("paths", total=2 * len(KINDS) * PIECES)
        for label, name in (("SentencePiece", SENTENCEPIECE), ("byte-level", BYTE_LEVEL)):
            pair = TokenizerPair(real_tokenizer(name), real_tokenizer(TEACHER))
            links = VocabLinks.of_pair(pair)
            for kind, make in KINDS.items():
                responses = _responses(pair, texts.take(make, 6 * PIECES * num_tokens), num_tokens)
                advance = partial(progress.advance, task)
                rows.append([f"{label}, {kind}", *_cells(PathBuilder(Asker(links)), responses, advance)])
    legend = LEGEND.format(tokens=num_tokens, repeats=REPEATS)
    publish("paths", "python -m benchmarks.paths", f"{table(HEADERS, rows)}\n{legend}", write=write)


def _responses(pair: TokenizerPair, text: str, num_tokens: int) -> list[UnitAlignment]:
    """Pieces of a text of so many tokens each, as both models read them."""
    ids, found = pair.student.encode(text), []
    for start in range(0, PIECES * num_tokens, num_tokens):
        piece = pair.student.table.join(ids[start : start + num_tokens]).decode(errors="ignore")
        found.append(CommonBoundaryAligner().align(pair.tokenize_text(piece)))
    return found


def _cells(builder: PathBuilder, responses: list[UnitAlignment], advance: Callable[[], None]) -> list[str]:
    cells = []
    for response in responses:
        known = builder.answers.tables.questions.size
        seconds = _seconds(lambda response=response: builder.build([response]))
        cells += [f"{seconds:.1f}", f"{builder.answers.tables.questions.size - known:,}"]
        advance()
    fastest = min(_seconds(lambda: builder.build(responses[-1:])) for _ in range(REPEATS))
    paths = builder.build(responses[-1:])
    tokens, steps = len(paths.base_N), len(paths.step_row_P)
    arrays = paths.on(torch.device("cpu"))
    entries = [len(one) / tokens for one in (arrays.moved_id_E, arrays.listed_id_Q)]
    at_cut = 1 - len(arrays.based_token_B) / tokens
    return [
        *cells,
        f"{1e3 * fastest:.1f}",
        f"{steps / tokens:.1f}",
        f"{at_cut:.0%}",
        "{:,.0f} / {:,.0f}".format(*entries),
    ]


def _seconds(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


if __name__ == "__main__":
    jsonargparse.auto_cli(main)
