"""One on-policy step, end to end: DistillModule against TRL's GOLDTrainer.

Both get the same tiny student and teacher (benchmarks/pair.py), the same prompts, batch, number of new tokens and of
optimizer steps, plain sampling by transformers' `generate`, fp32, the same threads; each runs in a process of its own.
Ours is SimCT with `sum_logprob` and `marginal` through Lightning's Trainer, all settings at their defaults; TRL's is
described in benchmarks/gold.py. Generation would hide what differs, so its seconds are given apart. Memory is the
process's peak of resident memory over all steps, optimizer state included. The models are narrow, so that the
vocabulary weighs more against the layers than it does in a real pair. The lengths are short, because GOLD's time grows
with their square: about ten minutes in all, on cores that nothing else uses.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import jsonargparse
import lightning as L
import torch
from rich.progress import track
from torch.utils.data import DataLoader
from typing_extensions import override

from benchmarks.measure import MIB, in_fresh_process, peak_memory
from benchmarks.pair import make_pair
from benchmarks.report import publish, table
from benchmarks.stepclock import Measured, StepClock, Work, quietly
from callbacks import RolloutCallback
from simct_pl import CommonBoundaryAligner, DistillModule, SimCTLoss
from simct_pl.rollout.engine import SamplingParams
from simct_pl.types import Prompt, PromptBatch

TARGET = 1.5
HEADERS = (
    "",
    "samples/s",
    "s a step",
    "of it generation",
    "samples/s without generation",
    "peak MiB above ready models",
    "peak MiB",
)


def run_ours(work: Work) -> Measured:
    """Train for all steps of the work; call it in a fresh process."""
    torch.set_num_threads(work.threads)
    module = DistillModule(
        work.student,
        work.teacher,
        objective=SimCTLoss("sum_logprob", "marginal"),
        aligner=CommonBoundaryAligner(),
        teacher_dtype="float32",
    )
    module.setup("fit")  # loads both tokenizers
    module.configure_model()
    clock = StepClock(work, module.student, module.pair.student.stop_ids)
    prompts = [Prompt(i, ({"role": "user", "content": question},)) for i, question in enumerate(work.questions())]
    trainer = L.Trainer(
        accelerator="cpu",
        precision="32-true",
        max_steps=work.warmup + work.steps,
        callbacks=[RolloutCallback(SamplingParams(max_tokens=work.new_tokens)), _Ticks(clock)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with peak_memory() as peak:
        trainer.fit(module, DataLoader(prompts, work.batch_size, collate_fn=PromptBatch))  # type: ignore[arg-type]
    return clock.measured(peak)


class _Ticks(L.Callback):
    def __init__(self, clock: StepClock) -> None:
        self.clock = clock

    @override
    def on_train_batch_end(self, *hook_arguments: object) -> None:
        self.clock.step_done()


def main(
    new_tokens: tuple[int, ...] = (32, 64),
    batch_size: int = 8,
    steps: int = 3,
    warmup: int = 1,
    student_width: int = 256,
    teacher_width: int = 256,
    num_layers: int = 4,
    threads: int = 1,
    write: bool = False,
) -> None:
    """Print the table; `--write` puts it into docs/performance.md.

    Args:
        new_tokens: length of each response, one group of rows each.
        batch_size: prompts and responses a step.
        steps: timed steps. warmup: steps before them.
        student_width: of the student's states.
        teacher_width: of the teacher's.
        num_layers: of each model.
        threads: of torch.
        write: publish the table.
    """
    from benchmarks.gold import run_gold  # needs the extra `bench`; ours can be tested without it

    torch.set_num_threads(threads)
    results: dict[int, list[Measured]] = {length: [] for length in new_tokens}
    with tempfile.TemporaryDirectory() as folder:
        sizes = {"student_width": student_width, "teacher_width": teacher_width, "num_layers": num_layers}
        student, teacher = make_pair(Path(folder), **sizes)
        runs = [(length, run) for length in new_tokens for run in (run_ours, run_gold)]
        for length, run in track(runs, "steps"):
            work = Work(student, teacher, batch_size, length, warmup, steps, threads)
            results[length].append(in_fresh_process(quietly, run, work))
    setting = (
        f"Timed steps: {steps}, after {warmup}. Prompts a step: {batch_size}. Layers: {num_layers}. "
        f"Student width: {student_width}. Teacher width: {teacher_width}."
    )
    publish("step", "python -m benchmarks.step", f"{_report(results)}\n\n{setting}", write=write)


def _report(results: dict[int, list[Measured]]) -> str:
    """The table, and a paragraph on what bounds the ratios if one misses the target."""
    rows, sentences = [], []
    for length, (ours, gold) in results.items():
        rows += [_row(f"{length} new tokens, ours", ours), _row(f"{length} new tokens, TRL GOLD", gold)]
        rows.append(_ratios(f"{length} new tokens, ours is better by", ours, gold))
        sentences += _bounds(length, ours, gold)
    return "\n".join([table(HEADERS, rows), "", *sentences]).strip()


def _row(name: str, run: Measured) -> list[str]:
    return [
        name,
        f"{run.samples_a_second:.2f}",
        f"{run.step_seconds:.2f}",
        f"{run.generation_seconds:.2f}",
        f"{run.samples_a_second_without_generation:.2f}",
        f"{run.peak_extra / MIB:,.0f}",
        f"{run.peak / MIB:,.0f}",
    ]


def _ratios(name: str, ours: Measured, gold: Measured) -> list[str]:
    ratios = (
        gold.step_seconds / ours.step_seconds,
        gold.step_seconds / ours.step_seconds,
        gold.generation_seconds / ours.generation_seconds,
        gold.rest_seconds / ours.rest_seconds,
        gold.peak_extra / ours.peak_extra,
        gold.peak / ours.peak,
    )
    return [name, *(f"**{ratio:.2f} ×**" for ratio in ratios)]


def _bounds(new_tokens: int, ours: Measured, gold: Measured) -> list[str]:
    """What keeps a ratio below the target, in a sentence each, from the measured split."""
    sentences = []
    if gold.step_seconds < TARGET * ours.step_seconds:
        shares = [f"{run.generation_seconds / run.step_seconds:.0%}" for run in (ours, gold)]
        sentences.append(
            f"At {new_tokens} new tokens generation takes {shares[0]} of our step and {shares[1]} of TRL's; if all "
            f"else cost nothing, our step would be {gold.step_seconds / ours.generation_seconds:.2f} × as fast as "
            "TRL's."
        )
    if gold.peak_extra < TARGET * ours.peak_extra:
        own, theirs = ours.peak_extra - ours.trained_bytes, gold.peak_extra - gold.trained_bytes
        sentences.append(
            f"At {new_tokens} new tokens gradients and AdamW's moments are {ours.trained_bytes / MIB:,.0f} MiB in "
            f"both, {ours.trained_bytes / ours.peak_extra:.0%} of our peak above the ready models; without them TRL's "
            f"is {theirs / own:.2f} × ours."
        )
    return sentences


if __name__ == "__main__":
    jsonargparse.auto_cli(main)
