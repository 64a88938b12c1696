"""What every objective teaches two models that agree about every text, and two that do not.

    python -m benchmarks.agreement --write true
    python -m benchmarks.agreement --pairs '["qwen<mistral"]' --methods '[marginal, BPM]'

Small languages, each about one thing that tokenizers cut differently, written by both models in their own tokens (see
simct_pl.preflight.agreement). The tokenizers are real ones, cut down to the texts, and toys of digits; a pair is
written student<teacher. The answer to models that agree has to be nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from statistics import fmean
from textwrap import fill

import jsonargparse
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.report import DOCS, publish, table
from simct_pl import (
    ALMLoss,
    AnchorMergedAligner,
    BPMLoss,
    CommonBoundaryAligner,
    CrossEntropyLoss,
    DPCALoss,
    GOLDLoss,
    OneToOneAligner,
    SharedVocabLoss,
    SimCTLoss,
    TokenConditionalLoss,
    ULDLoss,
    WordAligner,
    XTokenHKL,
    XTokenPKL,
)
from simct_pl.alignment import Aligner
from simct_pl.losses.base import Objective
from simct_pl.losses.divergences import require_choice
from simct_pl.preflight.agreement import STEPS, Agreement, Scene, measure
from simct_pl.preflight.languages import LANGUAGES, SUMS, Language
from simct_pl.preflight.listed_tokenizer import longest_match
from simct_pl.tokenization.model_tokenizer import ModelTokenizer
from tests.tokenization.real import LOADERS, real_tokenizer


@dataclass(frozen=True)
class Method:
    """How an objective is made, its aligner, and whose texts it is trained on.

    is_divergence: whether its loss is 0 at best; what is not is compared by what it does.
    """

    objective: Callable[[], Objective]
    aligner: Aligner = field(default_factory=CommonBoundaryAligner)
    on_policy: bool = True
    is_divergence: bool = True


# docs/methods.md's, but for DSKD, which compares hidden states: a table has none.
METHODS: dict[str, Method] = {
    "SimCT (paper)": Method(SimCTLoss),
    "SimCT (released)": Method(lambda: SimCTLoss("mean_logit"), AnchorMergedAligner()),
    "`mask`": Method(lambda: SimCTLoss("sum_logprob", "mask")),
    "`subtract`": Method(lambda: SimCTLoss("sum_logprob", "subtract")),
    "`marginal`": Method(lambda: SimCTLoss("sum_logprob", "marginal")),
    "`marginal`, words": Method(lambda: SimCTLoss("sum_logprob", "marginal"), WordAligner()),
    "exact": Method(SharedVocabLoss, OneToOneAligner()),
    "ULD": Method(ULDLoss),
    "GOLD": Method(GOLDLoss),
    "ALM": Method(lambda: ALMLoss("kl", None)),
    "DPCA": Method(DPCALoss, is_divergence=False),
    "X-Token P-KL": Method(XTokenPKL),
    "X-Token H-KL": Method(XTokenHKL),
    "BPM": Method(BPMLoss),
    "BPM, every row": Method(lambda: BPMLoss(skip_blank=False)),
    "one question a token": Method(TokenConditionalLoss),
    "SeqKD": Method(CrossEntropyLoss, on_policy=False, is_divergence=False),
}
DIGITS = [str(digit).encode() for digit in range(10)]
PAIRS_OF_DIGITS = [f"{number:02d}".encode() for number in range(100)]
REST = [b"+", b"=", b"."]
TOYS = {
    "digits": [*DIGITS, *REST],
    "pairs": [*DIGITS, *PAIRS_OF_DIGITS, *REST],
    "some pairs": [*DIGITS, *PAIRS_OF_DIGITS[::3], *REST],
    "other pairs": [*DIGITS, *PAIRS_OF_DIGITS[::2], *REST],
}
PAIRS = (
    *("digits<pairs", "pairs<digits", "some pairs<other pairs", "other pairs<some pairs"),
    *("qwen<mistral", "mistral<qwen", "qwen<deepseek", "deepseek<qwen", "deepseek<smollm2", "smollm2<deepseek"),
)
FAR = 1.05  # times the KL of the start counts as further off
LEGEND = (
    "Worst over the pairs ({pairs}; student < teacher), nats a text: the expected loss of two models that agree → "
    "KL(language || student's texts) after {steps} steps of gradient descent from there; the tables' own smoothing is "
    ".0008 of it. Last columns: a student that disagrees, mean over all scenes of that KL before and after as many "
    "steps, and in how many of the scenes it ended further off than it began. One step size for all, and losses of "
    "unlike size: a Jensen-Shannon divergence (BPM) is at most .69 a row. DPCA and SeqKD minimise no divergence, so "
    "that their loss says nothing. SeqKD is on the language's texts, all others on the student's."
)


@dataclass(frozen=True)
class Result:
    """What a method did in one scene."""

    method: str
    pair: str
    language: str
    agreement: Agreement


@cache
def tokenizer_of(name: str) -> ModelTokenizer:
    return longest_match(TOYS[name], name) if name in TOYS else real_tokenizer(name)


def scenes(pairs: Sequence[str]) -> Iterator[tuple[str, str, Scene]]:
    """(pair, language, scene); a toy pair knows sums alone."""
    for pair in pairs:
        names = pair.split("<")
        languages: dict[str, Language] = {"sums": SUMS} if set(names) <= set(TOYS) else LANGUAGES
        for language, texts in languages.items():
            yield pair, language, Scene.of(texts, *map(tokenizer_of, names))


def results(pairs: Sequence[str], methods: Sequence[str], steps: int) -> list[Result]:
    """Everything, scene by scene."""
    found = []
    for pair, language, scene in track(list(scenes(pairs)), "scenes"):
        for name in methods:
            method = METHODS[name]
            measured = measure(scene, method.objective(), method.aligner, on_policy=method.on_policy, steps=steps)
            found.append(Result(name, pair, language, measured))
    return found


def rows_of(found: Sequence[Result]) -> tuple[list[str], list[list[str]]]:
    """Headers and cells: a method a row, a language a column."""
    languages = list(dict.fromkeys(result.language for result in found))
    rows = []
    for name in dict.fromkeys(result.method for result in found):
        own = [result for result in found if result.method == name]
        cells = [_cell([r.agreement for r in own if r.language == language], METHODS[name]) for language in languages]
        far = sum(one.agreement.end > FAR * one.agreement.start for one in own)
        means = [fmean(getattr(one.agreement, moment) for one in own) for moment in ("start", "end")]
        rows.append([name, *cells, f"{number(means[0])} → {number(means[1])}", f"{far} of {len(own)}"])
    return ["objective", *languages, "disagreeing", "further off"], rows


def _cell(found: Sequence[Agreement], method: Method) -> str:
    loss = number(max(one.loss for one in found)) if method.is_divergence else "–"
    return f"{loss} → {number(max(one.drift for one in found))}"


def number(value: float) -> str:
    """Two significant digits at most, no leading zero: 10.1, 3.7, .14, .0008."""
    if value < 0.00005:
        return "0"
    text = f"{value:.1f}" if value >= 0.995 else f"{value:.2f}" if value >= 0.00995 else f"{value:.4f}"
    return text.removeprefix("0")


def show(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """The table on a terminal."""
    shown = Table(header_style="bold")
    console = Console() if Console().is_terminal else Console(width=200)
    for header in headers:
        shown.add_column(header, no_wrap=header == "objective")
    for row in rows:
        shown.add_row(*row)
    console.print(shown)


def draw(found: Sequence[Result], path: Path) -> None:
    """The worst loss at agreement by objective and language; and where students that disagree begin and end."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.colors import LogNorm

    names = [name for name in dict.fromkeys(r.method for r in found) if METHODS[name].is_divergence]
    languages = list(dict.fromkeys(result.language for result in found))
    worst = torch.tensor(
        [[max(r.agreement.loss for r in found if (r.method, r.language) == (n, c)) for c in languages] for n in names]
    )
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(11.5, 0.36 * len(names) + 2), width_ratios=[3, 2], sharey=True, layout="constrained"
    )
    left.imshow(worst.clamp(0.003, 10), cmap="YlOrRd", norm=LogNorm(0.003, 10), aspect="auto")
    for row, column in torch.cartesian_prod(torch.arange(len(names)), torch.arange(len(languages))).tolist():
        value = float(worst[row, column])
        left.text(column, row, number(value), ha="center", va="center", fontsize=8, color="w" if value > 3 else "k")
    left.set_xticks(range(len(languages)), languages, rotation=30, ha="right", fontsize=8)
    left.set_yticks(range(len(names)), [name.replace("`", "") for name in names], fontsize=9)
    left.set_title("loss of two models that agree, nats a text (worst pair; 0 is right)", fontsize=9.5)
    for row, name in enumerate(names):
        own = [r.agreement for r in found if r.method == name]
        right.scatter([one.end for one in own], [row] * len(own), s=9, color="#0072b2", alpha=0.45, linewidths=0)
        right.plot(fmean(one.end for one in own), row, "|", color="k", markersize=13, markeredgewidth=2)
    start = fmean(r.agreement.start for r in found)
    right.axvline(start, color="#d55e00", linewidth=1, label=f"before: {number(start)} on average")
    right.set_xscale("log")
    right.set_title("KL of a student that disagrees, after the steps (| mean)", fontsize=9.5)
    right.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.06), frameon=False)
    right.grid(axis="x", alpha=0.25)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main(
    write: bool = False, pairs: tuple[str, ...] = PAIRS, methods: tuple[str, ...] = tuple(METHODS), steps: int = STEPS
) -> None:
    """Print the table.

    Args:
        write: put it into docs/methods.md, and draw docs/agreement.png.
        pairs: student<teacher, of digits, pairs, some pairs, other pairs, qwen, deepseek, mistral, smollm2.
        methods: rows of the table.
        steps: of gradient descent.
    """
    torch.set_num_threads(1)
    for name in methods:
        require_choice("methods", name, tuple(METHODS))
    for name in (name for pair in pairs for name in pair.split("<")):
        require_choice("pairs", name, (*TOYS, *LOADERS))
    start = time.process_time()
    found = results(pairs, methods, steps)
    headers, rows = rows_of(found)
    show(headers, rows)
    print(f"{time.process_time() - start:.0f} s of CPU")
    if write:
        pairs_named = ", ".join(pair.replace("<", " < ") for pair in pairs)
        legend = fill(LEGEND.format(pairs=pairs_named, steps=steps), 128)
        publish(
            "agreement",
            "python -m benchmarks.agreement",
            f"{table(headers, rows)}\n\n{legend}",
            write=True,
            page="methods.md",
        )
        draw(found, DOCS / "agreement.png")


if __name__ == "__main__":
    jsonargparse.auto_cli(main)
