"""The values that flow through one step, each with its shape checks.

Shape letters, used in names everywhere:
    B sequences · S student response tokens · T teacher response tokens · U units · V shared columns
    C candidates (V + extra columns) · N, M student, teacher rows of a chunk · H hidden width
"Response" ids include the stop token when the response ended with one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from simct_pl.errors import AlignmentError

if TYPE_CHECKING:  # some values hold tensors; none needs torch to be imported
    from torch import Tensor

# role and content, a text; of an assistant perhaps tool_calls, of a tool's result perhaps tool_call_id and name.
Message = dict[str, Any]
Tool = dict[str, Any]  # what a model may call, as a JSON schema: {"type": "function", "function": {"name": …}}

# Columns of UnitAlignment.units_U6.
STUDENT_START, STUDENT_END, TEACHER_START, TEACHER_END, BYTE_START, BYTE_END = range(6)


class LostReason(StrEnum):
    """Why a stretch of a response could not be aligned."""

    NORMALIZER = "normalizer"  # a tokenizer's normaliser rewrote the text
    TRUNCATED_UTF8 = "truncated_utf8"  # the response ends inside a character
    UNMAPPED_TOKEN = "unmapped_token"  # an id without bytes, for example a padded vocabulary row
    ADDED_TOKEN = "added_token"  # a special token inside the response
    EMPTY_RESPONSE = "empty_response"  # no token but, at most, a stop
    BYTE_MISMATCH = "byte_mismatch"  # the bytes differ for no reason listed above


@dataclass(frozen=True)
class LostSpan:
    """A stretch that no unit covers: token ranges on both sides and bytes of the text, ends exclusive."""

    reason: LostReason
    student_start: int
    student_end: int
    teacher_start: int
    teacher_end: int
    byte_start: int
    byte_end: int


@dataclass(frozen=True)
class UnitAlignment:
    """The aligned units of one response.

    units_U6: int64 [U, 6], rows (student_start, student_end, teacher_start, teacher_end, byte_start, byte_end),
        token indices into the response ids, ends exclusive, in text order; a stop unit, when there is one, is last and
        has no bytes.
    student_ids_S, teacher_ids_T: int64 response ids, stop included.
    text: the response as bytes, without the stop.
    has_stop: whether the last unit pairs the two stop tokens.
    supervised_U: bool [U]; False where the shared columns mean other bytes on the two sides (the first unit when
        only one tokenizer put a dummy space in front), or where the teacher's context is over: the unit is aligned but
        cannot be supervised.
    """

    units_U6: np.ndarray
    student_ids_S: np.ndarray
    teacher_ids_T: np.ndarray
    text: bytes
    has_stop: bool
    supervised_U: np.ndarray
    lost: tuple[LostSpan, ...] = ()

    def __post_init__(self) -> None:
        if self.units_U6.ndim != 2 or self.units_U6.shape[1] != 6:
            raise AlignmentError(f"units have shape {self.units_U6.shape}; expected [U, 6]")
        if self.supervised_U.shape != (len(self.units_U6),):
            raise AlignmentError(f"supervised has shape {self.supervised_U.shape}; expected [{len(self.units_U6)}]")

    @property
    def num_units(self) -> int:
        return len(self.units_U6)

    @property
    def num_student_tokens(self) -> int:
        return len(self.student_ids_S)

    @property
    def num_teacher_tokens(self) -> int:
        return len(self.teacher_ids_T)

    @property
    def coverage(self) -> float:
        """Share of the student's response tokens that lie in a unit; 0 for an empty response."""
        covered = int((self.units_U6[:, STUDENT_END] - self.units_U6[:, STUDENT_START]).sum())
        return covered / max(self.num_student_tokens, 1)

    @property
    def num_supervised_student_tokens(self) -> int:
        """Student tokens in units that can be supervised."""
        units_U6 = self.units_U6[self.supervised_U]
        return int((units_U6[:, STUDENT_END] - units_U6[:, STUDENT_START]).sum())

    @property
    def lost_counts(self) -> Counter[str]:
        """Number of lost stretches by reason."""
        return Counter(str(span.reason) for span in self.lost)


@dataclass(frozen=True)
class Prompt:
    """One prompt as messages, with whatever the data set knows about its answer.

    index: position in the data set, from which sampling seeds derive.
    teacher_messages: what the teacher reads instead of messages, when its system prompt differs or it is shown more.
    response: a reference response (supervised fine-tuning, bits per byte).
    unsupervised_spans: byte ranges [start, end) of the response that supervised fine-tuning reads and does not predict.
        The stop counts as one byte behind the response.
    answer: what a grader compares with.
    tools: what the model may call, for both sides' chat templates.
    reply: instead of a response, the assistant's message that calls tools: each template writes it in its own way.
    teacher: who grades its answers, of several teachers; by default all of them.
    """

    index: int
    messages: tuple[Message, ...]
    response: str | None = None
    answer: str | None = None
    teacher_messages: tuple[Message, ...] | None = None
    unsupervised_spans: tuple[tuple[int, int], ...] = ()
    tools: tuple[Tool, ...] = ()
    reply: Message | None = None
    teacher: str | None = None

    @property
    def for_teacher(self) -> Prompt:
        """The prompt as the teacher reads it."""
        return self if self.teacher_messages is None else replace(self, messages=self.teacher_messages)

    @property
    def conversation(self) -> tuple[Message, ...]:
        """The messages with the assistant's turn behind them, where the data have one."""
        if self.reply is not None:
            return (*self.messages, self.reply)
        return (*self.messages, {"role": "assistant", "content": self.response}) if self.response else self.messages


@dataclass(frozen=True)
class Rollout:
    """One sampled response.

    author: whose words they are; a teacher's are spelt in the student's ids.
    prompt_ids, response_ids: the student's own ids; the response includes the stop when finish_reason is "stop".
    engine_logprobs: log-probability of each response id at temperature 1, before top-k and top-p, as the engine saw it;
        NaN of what the student has not sampled.
    num_unsupervised: response ids at the beginning that are read and not learned (thinking that is skipped).
    """

    prompt: Prompt
    sample_index: int
    prompt_ids: list[int]
    response_ids: list[int]
    engine_logprobs: list[float]
    finish_reason: str
    policy_version: int
    seed: int
    author: Literal["student", "teacher"] = "student"
    num_unsupervised: int = 0

    @property
    def num_targets(self) -> int:
        """Response ids that the loss is a mean over."""
        return len(self.response_ids) - self.num_unsupervised

    @property
    def stopped(self) -> bool:
        return self.finish_reason == "stop"


class PromptBatch:
    """The prompts of one optimizer step.

    rollouts: written in place by the rollout callback before the step. record: written in place by the training step,
    for the callbacks that report on it. Lightning passes this object through; `to` keeps it from being taken apart.
    """

    def __init__(self, prompts: list[Prompt]) -> None:
        self.prompts = prompts
        self.rollouts: list[Rollout] | None = None
        self.record: StepRecord | None = None

    def __len__(self) -> int:
        return len(self.prompts)

    def to(self, device: Any, non_blocking: bool = False) -> PromptBatch:
        return self


@dataclass(frozen=True)
class UnitStats:
    """What a step reports about its units, detached.

    Per unit: loss_U, supervised_U, student_logmass_U and teacher_logmass_U (log candidate mass), student_entropy_U
    (nats, full vocabulary, at the unit's first token), student_stop_U and teacher_stop_U (probability of stop there),
    teacher_logprobs_U (log-probability of the unit in the teacher's own tokens), anchor_U (its part of the loss that
    holds the student to where it began; 0 without an anchor).
    Per student token in a unit: token_logprobs_N.
    """

    loss_U: Tensor
    supervised_U: Tensor
    student_logmass_U: Tensor
    teacher_logmass_U: Tensor
    student_entropy_U: Tensor
    student_stop_U: Tensor
    teacher_stop_U: Tensor
    teacher_logprobs_U: Tensor
    anchor_U: Tensor
    token_logprobs_N: Tensor

    def split(self, num_units: list[int], num_tokens: list[int]) -> list[UnitStats]:
        """One part a response, on the CPU, given how many units and student tokens each contributed."""
        columns = [
            getattr(self, field.name).cpu().split(num_tokens if field.name.endswith("_N") else num_units)
            for field in fields(self)
        ]
        return [UnitStats(*values) for values in zip(*columns, strict=True)]


@dataclass(frozen=True)
class StepRecord:
    """What one optimizer step did, in the order of its rollouts: alignments and per-unit statistics (on the CPU).

    A rollout that several teachers grade is there once for each of them. teachers: who they are; empty where nobody
    graded (held-out prompts).
    """

    rollouts: list[Rollout]
    alignments: list[UnitAlignment]
    stats: list[UnitStats]
    loss_sum: float
    num_global_tokens: int
    teachers: list[str] = field(default_factory=list)

    @property
    def own(self) -> StepRecord:
        """The same of the student's own responses alone: for what says something about its policy."""
        return self.part([i for i, rollout in enumerate(self.rollouts) if rollout.author == "student"])

    def part(self, kept: Sequence[int]) -> StepRecord:
        """The same of some of its places."""
        return replace(
            self,
            rollouts=[self.rollouts[i] for i in kept],
            alignments=[self.alignments[i] for i in kept],
            stats=[self.stats[i] for i in kept],
            teachers=[self.teachers[i] for i in kept] if self.teachers else [],
        )
