"""Alignment of one response, in milliseconds: ours, TRL's, and two plain ways that anybody would write first.

What is timed is the way from token ids on both sides to groups of tokens; the tokenizers have run before the clock
starts. `partition` walks both sides' byte lengths in plain Python. `scan` decodes each token alone and compares
strings, as the released SimCT code does. TRL's part is what GOLD's trainer does with a sampled response.
"""

from __future__ import annotations

import itertools
import time
import timeit
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import jsonargparse
import numpy as np
from rich.progress import track

from benchmarks import texts
from benchmarks.report import publish, table
from simct_pl.alignment import CommonBoundaryAligner
from simct_pl.tokenization.model_tokenizer import ModelTokenizer
from simct_pl.tokenization.pair import TokenizedPair, read_side, sampled_side
from simct_pl.types import UnitAlignment
from tests.tokenization.real import real_tokenizer

Group = tuple[int, int, int, int]  # student start, student end, teacher start, teacher end
Aligner = Callable[[], list[Group]]

SENTENCEPIECE, BYTE_LEVEL, TEACHER = "mistral", "deepseek", "qwen"
KINDS = {"English": texts.english, "code": texts.code, "CJK, emoji": texts.cjk_emoji}
REPETITIVE = {"one syllable": texts.repetitive, "the same, rewritten": texts.repetitive_rewritten}
RESPONSE_TOKENS = 4481  # one response of ordinary length
PATIENCE = 0.3  # seconds for the repeats behind one figure; what takes longer runs once
HEADERS = (
    "text",
    "tokens, student / teacher",
    "SP: ours, ms",
    "SP: partition",
    "SP: scan",
    "SP: coverage, ours / scan",
    "BL: ours, ms",
    "BL: TRL",
    "BL: scan",
    "BL: coverage, ours / scan",
)
LEGEND = """
SP: a SentencePiece student (Mistral, 32k tokens); BL: a byte-level student (DeepSeek, 129k). Both read the same text
under a Qwen teacher (151k); the tokens are those of SP. CPU milliseconds a response, ids in int64 arrays for ours (in
Python lists, which first become arrays, the worked sums take {lists:.2g} ms); in brackets, how many times as long as
ours. Coverage: share of student tokens in a group. TRL refuses SentencePiece students. "Rewritten": the teacher's
normaliser changes one letter in a hundred, so that the bytes differ and have to be matched again and again; the
partition goes on without noticing.
"""


@dataclass(frozen=True)
class Case:
    """One text as both models read it; ids without stops."""

    student: ModelTokenizer
    teacher: ModelTokenizer
    text: str
    student_ids: list[int]
    teacher_ids: list[int]

    @classmethod
    def read(cls, student: str, text: str) -> Case:
        sides = real_tokenizer(student), real_tokenizer(TEACHER)
        return cls(*sides, text, *(side.encode(text) for side in sides))


Ids = np.ndarray | list[int]


def align(case: Case, student_ids: Ids, teacher_ids: Ids) -> UnitAlignment:
    """Ours: what a training step does; the student's ids end with its stop, the teacher's get theirs here."""
    student, _ = sampled_side(case.student.table, student_ids, stopped=True)
    teacher = read_side(case.teacher.table, teacher_ids, student.data, case.teacher.stop_ids[0])
    return CommonBoundaryAligner().align(TokenizedPair(student.data, student, teacher, has_stop=True))


def ours(case: Case, *, from_lists: bool = False) -> Callable[[], UnitAlignment]:
    """Ours on ids in arrays, or in Python lists, as engines and tokenizers return them."""
    as_given: Callable[[list[int]], Ids] = list if from_lists else np.array
    return partial(align, case, as_given([*case.student_ids, case.student.stop_ids[0]]), as_given(case.teacher_ids))


def partition(case: Case) -> list[Group]:
    """Close a group wherever both sides have spelled the same number of bytes."""
    student_ends, teacher_ends = (
        [end - side.table.dummy_prefix for end in itertools.accumulate(len(side.table.tokens[i]) for i in ids)]
        for side, ids in ((case.student, case.student_ids), (case.teacher, case.teacher_ids))
    )
    groups, student_start, teacher_start, j = [], 0, 0, 0
    for i, end in enumerate(student_ends, start=1):
        while j < len(teacher_ends) and teacher_ends[j] < end:
            j += 1
        if j < len(teacher_ends) and teacher_ends[j] == end:
            groups.append((student_start, i, teacher_start, j + 1))
            student_start, teacher_start = i, j + 1
    return groups


def scan(case: Case) -> list[Group]:
    """Decode each token alone; where the strings differ, lengthen the shorter one until they are equal."""
    student = case.student.hf.batch_decode([[token_id] for token_id in case.student_ids])
    teacher = case.teacher.hf.batch_decode([[token_id] for token_id in case.teacher_ids])
    groups: list[Group] = []
    i = j = 0
    while i < len(student) and j < len(teacher):
        student_start, teacher_start = i, j
        student_text, teacher_text = student[i], teacher[j]
        i, j = i + 1, j + 1
        while student_text != teacher_text:
            if len(student_text) <= len(teacher_text) and i < len(student):
                student_text += student[i]
                i += 1
            elif j < len(teacher):
                teacher_text += teacher[j]
                j += 1
            else:
                return groups  # no agreement any more: all the rest is lost
        groups.append((student_start, i, teacher_start, j))
    return groups


def trl_aligner(case: Case) -> Aligner | None:
    """TRL's own functions, as its trainer calls them on a sampled response; None where TRL is not installed.

    Its offsets of the teacher come from a call that also encodes the text; that call gets encodings made beforehand.
    """
    if find_spec("trl") is None:
        return None
    import torch
    from trl.experimental.gold import gold_trainer as gold

    backend = case.teacher.hf.backend_tokenizer
    encodings = backend.encode_batch([case.text], add_special_tokens=False)
    encoded: Any = SimpleNamespace(
        pre_tokenizer=backend.pre_tokenizer, decoder=backend.decoder, encode_batch=lambda *_, **__: encodings
    )
    trainer: Any = SimpleNamespace(
        use_uld_loss=True,
        uld_loss_fn=SimpleNamespace(use_extended_uld=True),
        teacher_tokenizer=case.teacher.hf,
        _tokenizer=case.student.hf,
    )
    ids_BS = torch.tensor([case.student_ids])

    def run() -> list[Group]:
        batch = {"input_ids": ids_BS, "labels": ids_BS}
        gold.GOLDTrainer._maybe_add_completion_byte_offsets(trainer, batch)
        [(ids, offsets)] = gold.encode_with_byte_offsets(encoded, [case.text])
        teacher_offsets_T2 = gold.pad_byte_offsets(offsets, len(ids), padding_side="right")
        sides = gold.ULDLoss._align_by_byte_offsets(batch["byte_offsets"][0].tolist(), teacher_offsets_T2.tolist())
        return [(ours[0], ours[-1] + 1, theirs[0], theirs[-1] + 1) for ours, theirs in zip(*sides, strict=True)]

    return run


def text_of(make: Callable[[], Iterator[str]], num_tokens: int) -> str:
    """A text of about so many tokens of the SentencePiece student."""
    student = real_tokenizer(SENTENCEPIECE)
    ids = student.encode(texts.take(make, 6 * num_tokens))  # none of the texts has six characters a token
    return student.table.join(ids[:num_tokens]).decode(errors="ignore").removeprefix(" ")


def row(label: str, text: str) -> list[str]:
    """One text through all contenders."""
    sentencepiece, byte_level = Case.read(SENTENCEPIECE, text), Case.read(BYTE_LEVEL, text)
    return [
        label,
        f"{len(sentencepiece.student_ids):,} / {len(sentencepiece.teacher_ids):,}",
        *_cells(sentencepiece, lambda: partition(sentencepiece)),
        *_cells(byte_level, trl_aligner(byte_level)),
    ]


def _cells(case: Case, other: Aligner | None) -> list[str]:
    """Milliseconds of ours, the other and the scan, then the coverage of ours and of the scan."""
    our_time = _milliseconds(ours(case))
    scanned = sum(end - start for start, end, _, _ in scan(case)) / len(case.student_ids)
    return [
        _rounded(our_time),
        "not installed" if other is None else _compared(_milliseconds(other), our_time),
        _compared(_milliseconds(lambda: scan(case)), our_time),
        f"{ours(case)().coverage:.0%} / {scanned:.0%}",
    ]


def _compared(milliseconds: float, our_time: float) -> str:
    return f"{_rounded(milliseconds)} ({milliseconds / our_time:.0f}×)"


def _rounded(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.2g}"


def _milliseconds(run: Callable[[], object]) -> float:
    """CPU time of the fastest run, without garbage collection: one core each, and other work hardly counts."""
    timer = timeit.Timer(run, timer=time.process_time)
    seconds: list[float] = []
    while sum(seconds) < PATIENCE:
        seconds.append(timer.timeit(1))
    return 1e3 * min(seconds)


def main(lengths: tuple[int, ...] = (512, 2048, 8192, 32_768, 131_072), write: bool = False) -> None:
    """Print the table; `--write` puts it into docs/performance.md.

    Args:
        lengths: of the texts, in tokens of the SentencePiece student.
        write: publish the table.
    """
    jobs = [("worked sums", texts.sums, RESPONSE_TOKENS)]
    jobs += [(kind, make, length) for kind, make in KINDS.items() for length in lengths]
    jobs += [(kind, make, max(lengths)) for kind, make in REPETITIVE.items()]
    rows = [row(label, text_of(make, length)) for label, make, length in track(jobs, "texts")]
    response = Case.read(SENTENCEPIECE, text_of(texts.sums, RESPONSE_TOKENS))
    legend = LEGEND.format(lists=_milliseconds(ours(response, from_lists=True)))
    publish("alignment", "python -m benchmarks.alignment", f"{table(HEADERS, rows)}\n{legend}", write=write)


if __name__ == "__main__":
    jsonargparse.auto_cli(main)
