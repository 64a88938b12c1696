"""The loss of one response, forward and backward: seconds and peak memory by form, vocabulary and length.

    python -m benchmarks.loss --write true

Every cell is measured in a fresh process. Memory is what the process needs beyond both heads and the hidden states, so
it includes the gradient of the student's head; time excludes the two models' bodies. A form that would need more than
`memory_gib` at a length is not run there; "fits" is the longest response within `memory_gib`, on the straight line
through the two longest lengths that were measured.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import jsonargparse
import torch
from rich.progress import Progress

from benchmarks.loss_forms import FORMS
from benchmarks.measure import best_seconds, in_fresh_process, peak_memory
from benchmarks.report import publish, table
from benchmarks.synthetic import make_problem

GIB = 2**30
BRIEF_SECONDS = 5  # what takes less is measured thrice
ROUNDS = 4
PRODUCTS = "head products alone"
MARGINAL = "simct_pl, mass-preserving (`marginal`)"
NARROW = 8  # states so narrow that the products cost next to nothing
CHUNKED = ("simct_pl", "recomputed", PRODUCTS)  # forms whose memory does not grow with the response
UNBOUNDED = 1_000_000  # tokens; beyond this the line's slope is noise


@dataclass(frozen=True)
class Pair:
    """Vocabulary sizes and widths of a student and a teacher."""

    name: str
    student_vocab: int
    teacher_vocab: int
    student_width: int
    teacher_width: int


PAIRS = (
    Pair("50k/130k", 49_152, 128_256, 576, 2048),  # SmolLM2-135M under Llama-3.2-1B
    Pair("150k/260k", 151_936, 262_144, 896, 1152),  # Qwen2.5-0.5B under Gemma-3-1B
)


@dataclass(frozen=True)
class Cell:
    seconds: float
    extra_bytes: int


def measure(form: str, pair: Pair, num_tokens: int, chunk_tokens: int, dtype: str, threads: int) -> Cell:
    """Forward and backward of one form; run it in a fresh process."""
    torch.set_num_threads(threads)
    problem = make_problem(
        num_tokens,
        pair.student_vocab,
        pair.teacher_vocab,
        pair.student_width,
        pair.teacher_width,
        getattr(torch, dtype),
    )

    # What a first call loads and sets up is not the form's memory.
    FORMS[form](make_problem(64, 512, 768, 8, 8, problem.student_hidden_NH.dtype), 16).backward()

    def run() -> None:
        problem.student_head.projection.weight.grad = problem.student_hidden_NH.grad = None
        FORMS[form](problem, chunk_tokens).backward()

    with peak_memory() as peak:
        seconds = best_seconds(run, repeats=1, warmup=0)
    if seconds < BRIEF_SECONDS:
        seconds = min(seconds, best_seconds(run, repeats=2, warmup=0))
    return Cell(seconds, peak.extra)


def times(
    unit: str, pair: Pair, chunk_tokens: int, dtype: str, threads: int, width: int | None = None, num_tokens: int = 512
) -> dict[str, float]:
    """Seconds of each chunked form as a multiple of those of one form; run it in a fresh process.

    In turns, and the best of each: on a machine with other guests, two runs a minute apart compare badly. width: of
    both sides' states, in place of the pair's.
    """
    torch.set_num_threads(threads)
    sizes = pair.student_vocab, pair.teacher_vocab, width or pair.student_width, width or pair.teacher_width
    problem = make_problem(num_tokens, *sizes, getattr(torch, dtype))
    best = {form: math.inf for form in FORMS if form.startswith(CHUNKED)}
    for _ in range(ROUNDS):
        for form in best:
            problem.student_head.projection.weight.grad = problem.student_hidden_NH.grad = None
            seconds = best_seconds(lambda form=form: FORMS[form](problem, chunk_tokens).backward(), 1, warmup=0)
            best[form] = min(best[form], seconds)
    return {form: seconds / best[unit] for form, seconds in best.items()}


def main(
    lengths: tuple[int, ...] = (512, 2048, 8192),
    chunk_tokens: int = 512,
    dtype: str = "float32",
    memory_gib: float = 8.0,
    patience: float = 150.0,
    threads: int = 2,
    write: bool = False,
) -> None:
    """Measure every form at every length and vocabulary: about half an hour.

    Args:
        lengths: student tokens of the response, ascending.
        chunk_tokens: of the chunked forms.
        dtype: of the heads and states.
        memory_gib: what a form may use.
        patience: seconds; a form that would take longer at a length is not run there.
        threads: of torch.
        write: put the table into docs/performance.md.
    """
    cells: dict[tuple[str, str, int], Cell] = {}
    with Progress() as progress:
        task = progress.add_task("loss", total=len(PAIRS) * len(FORMS) * len(lengths))
        for pair in PAIRS:
            for form in FORMS:
                for num_tokens in lengths:
                    progress.update(task, advance=1, description=f"{pair.name}, {form}, {num_tokens}")
                    measured = [(n, cells[pair.name, form, n]) for n in lengths if (pair.name, form, n) in cells]
                    if _worth_running(form, measured, num_tokens, memory_gib, patience):
                        cell = in_fresh_process(measure, form, pair, num_tokens, chunk_tokens, dtype, threads)
                        cells[pair.name, form, num_tokens] = cell
                        progress.console.print(
                            f"{pair.name}, {form}, {num_tokens}: {cell.seconds:.2f} s, {cell.extra_bytes / GIB:.2f} GiB"
                        )
    given = chunk_tokens, dtype, threads
    ratios = {
        pair.name: [
            in_fresh_process(times, PRODUCTS, pair, *given),
            in_fresh_process(times, MARGINAL, pair, *given, NARROW),
        ]
        for pair in PAIRS
    }
    body = _body(cells, ratios, lengths, chunk_tokens, dtype, memory_gib)
    publish("loss", "python -m benchmarks.loss", body, write=write)


def _worth_running(
    form: str, measured: list[tuple[int, Cell]], num_tokens: int, memory_gib: float, patience: float
) -> bool:
    """Whether a form is expected to stay within the memory, and within the patience, at the next length."""
    if not measured:
        return True
    longest, cell = measured[-1]
    growth = num_tokens / longest
    # The loop's backward allocates all logits once a unit: quadratic in length.
    seconds = cell.seconds * growth ** (2 if form == "unit by unit, as released" else 1)
    is_flat = form.startswith(CHUNKED)
    return seconds < patience and (is_flat or cell.extra_bytes * growth < memory_gib * GIB)


def _body(
    cells: dict[tuple[str, str, int], Cell],
    ratios: dict[str, list[dict[str, float]]],
    lengths: tuple[int, ...],
    chunk_tokens: int,
    dtype: str,
    memory_gib: float,
) -> str:
    headers = [f"vocabularies, form ({dtype}, chunks of {chunk_tokens})"]
    headers += [f"s at {n:,}" for n in lengths] + ["× products, 512, in turns", f"× marginal, states of {NARROW}"]
    headers += [f"GiB at {n:,}" for n in lengths]
    headers.append(f"fits in {memory_gib:g} GiB")
    rows = []
    for pair in PAIRS:
        for form in FORMS:
            found = {n: cells[pair.name, form, n] for n in lengths if (pair.name, form, n) in cells}
            multiples = [multiple.get(form) for multiple in ratios[pair.name]]
            rows.append(
                [
                    f"{pair.name} {form}",
                    *(f"{found[n].seconds:.2f}" if n in found else "–" for n in lengths),
                    *("–" if multiple is None else f"{multiple:.2f}" for multiple in multiples),
                    *(f"{found[n].extra_bytes / GIB:.2f}" if n in found else "–" for n in lengths),
                    _longest(found, memory_gib),
                ]
            )
    return table(headers, rows)


def _longest(found: dict[int, Cell], memory_gib: float) -> str:
    """The length at which the line through the last two measured points reaches the limit."""
    points = sorted((n, cell.extra_bytes) for n, cell in found.items())
    if not points:
        return "–"
    if len(points) == 1:  # through the origin, then
        points = [(0, 0), *points]
    (n1, bytes1), (n2, bytes2) = points[-2:]
    slope = (bytes2 - bytes1) / (n2 - n1)
    tokens = n2 + (memory_gib * GIB - bytes2) / slope if slope > 0 else UNBOUNDED
    return f"{int(tokens):,}" if tokens < UNBOUNDED else f"> {UNBOUNDED:,}"


if __name__ == "__main__":
    jsonargparse.auto_cli(main)
