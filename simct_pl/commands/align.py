"""`simct_pl align`: show how the tokens of two models line up on a text.

In: two tokenizers and a text, or a JSONL file of texts. Out: on a terminal the coloured text, counts and what was
lost; with --json one object a text. Needs no weights and does not import torch.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from simct_pl.alignment import Aligner, AnchorMergedAligner, CommonBoundaryAligner, OneToOneAligner
from simct_pl.alignment.one_to_one import is_one_to_one
from simct_pl.errors import MissingFileError, PromptDataError
from simct_pl.progress import follow
from simct_pl.tokenization.pair import TokenizerPair
from simct_pl.types import BYTE_END, BYTE_START, UnitAlignment

ALIGNERS: dict[str, type[Aligner]] = {
    "simct": CommonBoundaryAligner,
    "common_boundary": CommonBoundaryAligner,
    "exact": OneToOneAligner,
    "one_to_one": OneToOneAligner,
    "anchor_merged": AnchorMergedAligner,
}
_ONE_TO_ONE, _SPAN = ("black on bright_green", "black on green"), ("black on bright_yellow", "black on yellow")
_LOST, _LEFT_OUT = "white on red strike", "dim"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; 0 if every text was read.

    Raises:
        SimctError: for a tokenizer or a file that cannot be read, naming the path or the line.
    """
    args = _parser().parse_args(argv)
    texts = [_checked(args.text, "--text")] if args.text is not None else read_texts(args.file)
    pair = TokenizerPair.from_pretrained(args.student, args.teacher)
    aligner = ALIGNERS[args.aligner]()
    if args.json:
        for text in texts:
            print(json.dumps(summarise(aligner.align(pair.tokenize_text(text)), len(pair.shared_vocab))))
        return 0
    console = Console()
    if len(texts) == 1:
        _print_alignment(console, aligner.align(pair.tokenize_text(texts[0])), len(pair.shared_vocab))
        return 0
    alignments = [aligner.align(pair.tokenize_text(text)) for text in follow(texts, "Aligning")]
    _print_table(console, alignments, len(pair.shared_vocab))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m simct_pl align",
        description="Show how the tokens of two models line up on a text.",
        allow_abbrev=False,
    )
    parser.add_argument("--student", required=True, metavar="PATH", help="model folder, tokenizer.json or hub name")
    parser.add_argument("--teacher", required=True, metavar="PATH", help="model folder, tokenizer.json or hub name")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--text", help="the text to align")
    source.add_argument("--file", metavar="JSONL", help='a file with one JSON object a line, each with a field "text"')
    parser.add_argument("--aligner", choices=ALIGNERS, default="simct", help="which units (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object a text")
    return parser


def read_texts(path: str) -> list[str]:
    """The field "text" of every line of a JSONL file.

    Raises:
        MissingFileError: if there is no such file. PromptDataError: naming the line that is not as expected.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise MissingFileError(f'--file {path!r} does not exist or is no file. Give a JSONL file with a field "text".')
    texts = list(_texts(path, file.read_bytes()))
    if not texts:
        raise PromptDataError(f'--file {path!r} is empty; expected one JSON object a line, each with a field "text".')
    return texts


def _texts(path: str, content: bytes) -> Iterator[str]:
    for number, line in enumerate(content.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:  # also bytes that are not UTF-8
            raise PromptDataError(f"{path}, line {number}: not valid JSON ({error}).") from error
        if not isinstance(row, dict) or not isinstance(row.get("text"), str):
            raise PromptDataError(f'{path}, line {number}: expected an object with a string field "text".')
        yield _checked(row["text"], f"{path}, line {number}")


def _checked(text: str, where: str) -> str:
    """A text that has bytes: a lone surrogate (half an escaped character, or a stray byte of a shell) has none."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PromptDataError(f"{where}: {text[error.start]!a} is no character; give valid Unicode.") from error
    return text


def summarise(alignment: UnitAlignment, num_shared: int) -> dict[str, object]:
    """What --json prints for one text; the units are rows of UnitAlignment.units_U6."""
    return {
        "units": alignment.units_U6.tolist(),
        "student_tokens": alignment.num_student_tokens,
        "teacher_tokens": alignment.num_teacher_tokens,
        "coverage": alignment.coverage,
        "shared_vocab": num_shared,
        "lost": dict(alignment.lost_counts),
    }


def _print_alignment(console: Console, alignment: UnitAlignment, num_shared: int) -> None:
    plain = console.color_system is None
    console.print(colour_units(alignment, separator="│" if plain else ""), soft_wrap=True)
    if plain:
        console.print("\n│ separates units", soft_wrap=True)
        return _print_counts(console, alignment, num_shared)
    console.print()
    legend = [(" 1:1 ", _ONE_TO_ONE[0]), (" several tokens ", _SPAN[0]), (" lost ", _LOST), ("left out", _LEFT_OUT)]
    console.print(Text(" ").join(Text(*entry) for entry in legend))
    return _print_counts(console, alignment, num_shared)


def _print_counts(console: Console, alignment: UnitAlignment, num_shared: int) -> None:
    one_to_one = int(is_one_to_one(alignment.units_U6).sum())
    console.print(f"units           {alignment.num_units} ({one_to_one} of them 1:1)", highlight=False)
    console.print(
        f"tokens          student {alignment.num_student_tokens}, teacher {alignment.num_teacher_tokens}",
        highlight=False,
    )
    console.print(f"coverage        {alignment.coverage:.1%} of the student's tokens", highlight=False)
    console.print(f"shared tokens   {num_shared}", highlight=False)
    console.print(f"lost            {_lost_words(alignment.lost_counts)}", highlight=False)


def colour_units(alignment: UnitAlignment, separator: str = "") -> Text:
    """The text, units in alternating colours; the rest is lost or left out by the aligner.

    A unit may be part of a character; such a part is shown as its bytes. separator: put between stretches.
    """
    one_to_one_U = is_one_to_one(alignment.units_U6)
    styled = [
        (row[BYTE_START], row[BYTE_END], (_ONE_TO_ONE if alone else _SPAN)[unit % 2])
        for unit, (row, alone) in enumerate(zip(alignment.units_U6.tolist(), one_to_one_U.tolist(), strict=True))
    ]
    styled += [(span.byte_start, span.byte_end, _LOST) for span in alignment.lost]
    parts, done = [], 0
    for start, end, style in sorted(styled):
        parts += [(done, start, _LEFT_OUT), (start, end, style)]
        done = end
    parts.append((done, len(alignment.text), _LEFT_OUT))
    shown = [Text(_visible(alignment.text[start:end]), style) for start, end, style in parts if start < end]
    return Text(separator).join(shown)


def _visible(part: bytes) -> str:
    """Text with its invisible characters shown; line breaks stay."""
    text = part.decode("utf-8", "backslashreplace")
    return "".join(
        "⏎\n" if char == "\n" else char if char.isprintable() else char.encode("unicode_escape").decode()
        for char in text
    )


def _print_table(console: Console, alignments: list[UnitAlignment], num_shared: int) -> None:
    student = sum(alignment.num_student_tokens for alignment in alignments)
    covered = sum(alignment.coverage * alignment.num_student_tokens for alignment in alignments)
    lost: Counter[str] = sum((alignment.lost_counts for alignment in alignments), Counter())
    table = Table(title=f"{len(alignments)} texts", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_row("units", str(sum(alignment.num_units for alignment in alignments)))
    table.add_row("  of them 1:1", str(sum(int(is_one_to_one(a.units_U6).sum()) for a in alignments)))
    table.add_row("student tokens", str(student))
    table.add_row("teacher tokens", str(sum(alignment.num_teacher_tokens for alignment in alignments)))
    table.add_row("coverage", f"{covered / max(student, 1):.1%}")
    table.add_row("shared tokens", str(num_shared))
    table.add_row("lost stretches", _lost_words(lost))
    console.print(table)


def _lost_words(lost: Counter[str]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in sorted(lost.items())) or "nothing"
