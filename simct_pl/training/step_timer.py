"""Where a training step's time goes: seconds by phase, and how much of what the models read was padding.

The step opens phases (`with phases("teacher"): ...`) and counts; callbacks.TimingCallback starts the timer and takes a
lap each step. While nobody has started it, a phase is a no-op and nothing waits for a device.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import pairwise
from time import perf_counter
from typing import Any, Literal, Protocol, get_args

import torch

PhaseName = Literal[
    "rollout",  # generation
    "refresh",  # the engine takes over the student's weights
    "alignment",  # waiting for the thread that aligns
    "teacher",  # its forward, up to the hidden states
    "student_forward",  # the same of the student
    "loss",  # both heads and the objective; the student's head runs backward in here too
    "student_backward",  # the rest of backward, with the exchange of gradients between ranks
    "optimizer",
    "other",  # what no phase covers: data, logging, callbacks, checkpoints
]
PHASES: tuple[PhaseName, ...] = get_args(PhaseName)
Side = Literal["student", "teacher"]


@dataclass(frozen=True)
class Lap:
    """What happened in a step; laps can be added up.

    seconds: of every phase; they add up to the time that passed. worker_seconds: that the aligning thread was busy,
    waited for or not. num_tokens, num_positions: what each model's forwards read, without and with padding.
    """

    seconds: dict[PhaseName, float]
    worker_seconds: float
    num_tokens: Counter[Side]
    num_positions: Counter[Side]

    def __add__(self, other: Lap) -> Lap:
        return Lap(
            {phase: seconds + other.seconds[phase] for phase, seconds in self.seconds.items()},
            self.worker_seconds + other.worker_seconds,
            self.num_tokens + other.num_tokens,
            self.num_positions + other.num_positions,
        )

    @property
    def total_seconds(self) -> float:
        return sum(self.seconds.values())

    def padding_share(self, side: Side) -> float:
        """Share of the positions of one model's forwards that held no token."""
        positions = self.num_positions[side]
        return 1 - self.num_tokens[side] / positions if positions else 0.0


class PhaseTimer:
    """Callable that opens a phase: `with timer("loss"): ...`.

    Phases nest. An inner phase's seconds are its own and not the outer's too.
    """

    def __init__(self) -> None:
        self._clock: _Clock | None = None  # None: nobody listens
        self._open: list[PhaseName | None] = ["other"]  # innermost last; None: paused
        self._marks: list[tuple[PhaseName | None, Any]] = []  # from this moment on, time is this phase's
        self._clear_counts()

    def start(self, device: torch.device) -> None:
        """Begin the first lap. On CUDA, time is that of the current stream of this device."""
        self._clock = _CudaClock() if device.type == "cuda" else _HostClock()
        self._open, self._marks = ["other"], []
        self._clear_counts()
        self._mark()

    def stop(self) -> None:
        self._clock, self._marks = None, []

    def __reduce__(self) -> tuple[type[PhaseTimer], tuple[()]]:
        """A copy, as of the module that it times, is a new timer: nobody listens to it, and events cannot be copied."""
        return PhaseTimer, ()

    def __call__(self, phase: PhaseName) -> AbstractContextManager[None]:
        return self._inside(phase) if self.is_listening else nullcontext()

    def count_forward(self, side: Side, num_tokens: int, num_positions: int) -> None:
        if self.is_listening:
            self._num_tokens[side] += num_tokens
            self._num_positions[side] += num_positions

    def count_worker(self, seconds: float) -> None:
        if self.is_listening:
            self._worker_seconds += seconds

    def pause(self) -> None:
        """Until `resume`, time, phases and counts belong to no lap."""
        self._open.append(None)
        self._mark()

    def resume(self) -> None:
        self._open.pop()
        self._mark()

    def lap(self) -> Lap:
        """What happened since `start` or the last lap. On CUDA this waits for the device, once."""
        assert self._clock is not None, "take laps between start() and stop()"
        self._mark()
        # From one mark to the next, time belongs to the phase that the first of them names.
        phases, moments = zip(*self._marks, strict=True)
        seconds = dict.fromkeys(PHASES, 0.0)
        for phase, gap in zip(phases, self._clock.gaps(moments), strict=False):  # the last mark has no gap yet
            if phase is not None:
                seconds[phase] += gap
        lap = Lap(seconds, self._worker_seconds, self._num_tokens, self._num_positions)
        # The last mark is the first of the next lap: no time falls between the two.
        self._marks = self._marks[-1:]
        self._clear_counts()
        return lap

    def _clear_counts(self) -> None:
        self._worker_seconds = 0.0
        self._num_tokens: Counter[Side] = Counter()
        self._num_positions: Counter[Side] = Counter()

    @property
    def is_listening(self) -> bool:
        """Whether what happens now will be in a lap."""
        return self._clock is not None and self._open[-1] is not None

    @contextmanager
    def _inside(self, phase: PhaseName) -> Iterator[None]:
        self._open.append(phase)
        self._mark()
        try:
            yield
        finally:
            self._open.pop()
            self._mark()

    def _mark(self) -> None:
        if self._clock is not None:
            self._marks.append((self._open[-1], self._clock.now()))


class _Clock(Protocol):
    def now(self) -> Any: ...

    def gaps(self, moments: tuple[Any, ...]) -> list[float]:
        """Seconds between neighbouring moments."""


class _HostClock:
    def now(self) -> float:
        return perf_counter()

    def gaps(self, moments: tuple[float, ...]) -> list[float]:
        return [end - start for start, end in pairwise(moments)]


class _CudaClock:
    """Events on the stream, read when the last of them has happened: the host is never held up within a step.

    The host's clock would charge a kernel to whoever next waits for its result.
    """

    def now(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def gaps(self, moments: tuple[torch.cuda.Event, ...]) -> list[float]:
        moments[-1].synchronize()
        return [start.elapsed_time(end) / 1000 for start, end in pairwise(moments)]
