"""TRL's GOLDTrainer as a contender: cross-tokenizer, on-policy, on the CPU.

Its documented defaults, with `use_uld_loss` (and so its extended, byte-offset alignment), but for: `lmbda` 1 (on-policy
alone), plain sampling (temperature 1, no top-p: sorting the vocabulary for each new token would be its largest cost),
and its best settings for this machine: fp32, no gradient checkpointing, no logging. One batch is one forward.

Its loss sorts both distributions of every unit. It also copies them row by row into a new tensor, and the backward of
each such copy makes and copies a tensor of [response x vocabulary]: its time grows with the square of the length.
"""

from __future__ import annotations

import tempfile
import warnings
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, TrainerCallback

from benchmarks.measure import peak_memory
from benchmarks.stepclock import Measured, StepClock, Work

with warnings.catch_warnings(action="ignore"):  # "you are importing from trl.experimental"
    from trl.experimental.gold import GOLDConfig, GOLDTrainer

MAX_PROMPT = 256


def run_gold(work: Work) -> Measured:
    """Train for all steps of the work; call it in a fresh process."""
    torch.set_num_threads(work.threads)
    student = AutoModelForCausalLM.from_pretrained(work.student, dtype=torch.float32)
    teacher = AutoModelForCausalLM.from_pretrained(work.teacher, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(work.student)
    clock = StepClock(work, student, (tokenizer.eos_token_id,))
    with tempfile.TemporaryDirectory() as folder:
        trainer = GOLDTrainer(
            model=student,
            teacher_model=teacher,
            args=_config(work, folder),
            train_dataset=Dataset.from_list([_row(question) for question in work.questions()]),
            processing_class=tokenizer,
            callbacks=[_Ticks(clock)],
        )
        trainer.remove_callback(PrinterCallback)
        with peak_memory() as peak:
            trainer.train()
    return clock.measured(peak)


def _config(work: Work, folder: str) -> GOLDConfig:
    return GOLDConfig(
        output_dir=folder,
        use_uld_loss=True,
        teacher_tokenizer_name_or_path=work.teacher,
        lmbda=1.0,
        temperature=1.0,
        top_p=1.0,
        max_completion_length=work.new_tokens,
        max_length=work.new_tokens + MAX_PROMPT,
        per_device_train_batch_size=work.batch_size,
        gradient_accumulation_steps=1,
        max_steps=work.warmup + work.steps,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        logging_strategy="no",
        save_strategy="no",
        disable_tqdm=True,
    )


def _row(question: str) -> dict[str, Any]:
    # The answer only shows where the prompt ends: with lmbda 1 the student writes its own.
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": "4"}]}


class _Ticks(TrainerCallback):
    def __init__(self, clock: StepClock) -> None:
        self.clock = clock

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.clock.step_done()
