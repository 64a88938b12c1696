"""What the loss of some responses needs besides the models, made on the host from ids alone.

In: rollouts. Out: AlignedBatch. Nothing in it depends on a model's output, so a thread can make it while one runs.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from simct_pl.alignment.base import Aligner
from simct_pl.losses.base import ObjectiveBase
from simct_pl.losses.inputs.unit_rows import UnitRows, build_unit_rows
from simct_pl.tokenization.pair import TokenizerPair
from simct_pl.types import STUDENT_START, TEACHER_END, Rollout, UnitAlignment, UnitStats


@dataclass(frozen=True)
class AlignedBatch:
    """Responses in both models' tokens.

    alignments: the units of each response. teacher_prompt_ids: each prompt in the teacher's own template. rows: the
    supervised units, on the CPU; a response's rows follow those of the response before it, on both sides. seconds: what
    making it took.
    """

    alignments: list[UnitAlignment]
    teacher_prompt_ids: list[list[int]]
    rows: UnitRows
    seconds: float

    @classmethod
    def of(
        cls,
        rollouts: Sequence[Rollout],
        pair: TokenizerPair,
        aligner: Aligner,
        teacher_context: int | None = None,
        objective: ObjectiveBase | None = None,
    ) -> AlignedBatch:
        """Re-tokenise for the teacher, in one batched call, and align.

        teacher_context: longest prompt + response that the teacher was made for; units that end beyond it are not
            supervised. objective: what it reads of the units beside their tokens is made too.

        Raises:
            TokenizerError: if the teacher's template refuses a prompt. AlignmentError: see TokenizerPair.tokenize.
        """
        start = time.perf_counter()
        tokenized = pair.tokenize_batch([(rollout.response_ids, rollout.stopped) for rollout in rollouts])
        alignments = [aligner.align(tokens) for tokens in tokenized]
        alignments = [
            _supervised_from(rollout.num_unsupervised, alignment) if rollout.num_unsupervised else alignment
            for rollout, alignment in zip(rollouts, alignments, strict=True)
        ]
        prompt_ids = [pair.teacher.render(rollout.prompt.for_teacher) for rollout in rollouts]
        if teacher_context is not None:
            rooms = [teacher_context - len(ids) for ids in prompt_ids]
            alignments = [
                _supervised_within(room, alignment) for room, alignment in zip(rooms, alignments, strict=True)
            ]
        with_prefixes = objective is None or objective.uses_prefixes
        path_builder = None if objective is None else objective.path_builder
        rows = build_unit_rows(alignments, pair.shared_vocab, with_prefixes=with_prefixes, path_builder=path_builder)
        return cls(alignments, prompt_ids, rows, time.perf_counter() - start)

    @property
    def teacher_response_ids(self) -> list[list[int]]:
        return [alignment.teacher_ids_T.tolist() for alignment in self.alignments]

    def split(self, stats: UnitStats) -> list[UnitStats]:
        """Each response's part of the batch's statistics, on the CPU."""
        num_units = [int(alignment.supervised_U.sum()) for alignment in self.alignments]
        return stats.split(num_units, [alignment.num_supervised_student_tokens for alignment in self.alignments])


def _supervised_from(first: int, alignment: UnitAlignment) -> UnitAlignment:
    """Without supervision of units that hold one of so many first tokens of the student's."""
    behind_U = alignment.units_U6[:, STUDENT_START] >= first
    return replace(alignment, supervised_U=alignment.supervised_U & behind_U)


def _supervised_within(num_tokens: int, alignment: UnitAlignment) -> UnitAlignment:
    """Without supervision of units that end behind so many of the teacher's tokens."""
    inside_U = alignment.units_U6[:, TEACHER_END] <= num_tokens
    return alignment if inside_U.all() else replace(alignment, supervised_U=alignment.supervised_U & inside_U)
