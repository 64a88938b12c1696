"""What one on-policy step is asked to do, and what is measured of it: the same for every contender."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import datasets
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from benchmarks.measure import Peak

BYTES_FP32 = 4
NUM_TRAINED_COPIES = 3  # a gradient and two moments of AdamW a weight


@dataclass(frozen=True)
class Work:
    """Models by path, `batch_size` prompts and as many responses of `new_tokens` a step, fp32 on so many threads.

    The first `warmup` of all steps are not timed, but count for memory.
    """

    student: str
    teacher: str
    batch_size: int
    new_tokens: int
    warmup: int
    steps: int
    threads: int

    def __post_init__(self) -> None:
        if self.warmup < 1 or self.steps < 1:
            raise ValueError(f"warmup={self.warmup}, steps={self.steps}; expected at least one of each.")

    def questions(self) -> list[str]:
        """One prompt a response, all different and about equally long."""
        return [f"Question {i + 100}: what comes next?" for i in range(self.batch_size * (self.warmup + self.steps))]


@dataclass(frozen=True)
class Measured:
    """Seconds of one step (mean of the timed ones), those of them inside `generate`, and bytes.

    peak, peak_extra: most resident memory, and that above what the process held when it was ready for its first step.
    trained_bytes: gradients and moments, which every contender holds.
    """

    samples: int
    step_seconds: float
    generation_seconds: float
    peak: int
    peak_extra: int
    trained_bytes: int

    @property
    def rest_seconds(self) -> float:
        return self.step_seconds - self.generation_seconds

    @property
    def samples_a_second(self) -> float:
        return self.samples / self.step_seconds

    @property
    def samples_a_second_without_generation(self) -> float:
        return self.samples / self.rest_seconds


class StepClock:
    """Reads the clock at the end of every optimizer step, and around every `student.generate`."""

    def __init__(self, work: Work, student: PreTrainedModel, stop_ids: tuple[int, ...]) -> None:
        self.work, self.student, self.stop_ids = work, student, stop_ids
        self._generation_seconds = 0.0
        self._marks: list[tuple[float, float]] = []
        generate = student.generate

        def timed_generate(*, input_ids: Tensor, **arguments: Any) -> Any:
            start = time.perf_counter()
            output = generate(input_ids=input_ids, **arguments)  # type: ignore[operator]
            self._generation_seconds += time.perf_counter() - start
            self._check(output if isinstance(output, Tensor) else output.sequences, input_ids.shape[1])
            return output

        student.generate = timed_generate  # type: ignore[assignment]

    def step_done(self) -> None:
        self._marks.append((time.perf_counter(), self._generation_seconds))

    def measured(self, peak: Peak) -> Measured:
        """After the last step."""
        steps = self.work.steps
        if len(self._marks) != self.work.warmup + steps:
            raise RuntimeError(f"{len(self._marks)} steps were run; expected {self.work.warmup} + {steps}.")
        (start, generation_start), (end, generation_end) = self._marks[-steps - 1], self._marks[-1]
        num_parameters = sum(parameter.numel() for parameter in self.student.parameters())
        return Measured(
            samples=self.work.batch_size,
            step_seconds=(end - start) / steps,
            generation_seconds=(generation_end - generation_start) / steps,
            peak=peak.most,
            peak_extra=peak.extra,
            trained_bytes=NUM_TRAINED_COPIES * BYTES_FP32 * num_parameters,
        )

    def _check(self, ids_BS: Tensor, prompt_width: int) -> None:
        """All contenders must have as many tokens to learn from."""
        response_BS = ids_BS[:, prompt_width:]
        expected = (self.work.batch_size, self.work.new_tokens)
        if tuple(response_BS.shape) != expected:
            raise RuntimeError(f"generate returned {tuple(response_BS.shape)} new tokens; expected {expected}.")
        if torch.isin(response_BS, torch.tensor(self.stop_ids)).any():
            raise RuntimeError("A response ended before the length limit; the contenders' work is not the same.")


def quietly(run: Callable[[Work], Measured], work: Work) -> Measured:
    """run(work) without the bars and remarks of the libraries; it silences the whole process."""
    warnings.simplefilter("ignore")
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    datasets.disable_progress_bars()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    return run(work)
