"""Some responses as their teachers read them: which of them each teacher grades, and how much that counts.

In: rollouts, and a module's lessons. Out: GradedBatch, made on the host from ids alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from simct_pl.alignment.base import Aligner
from simct_pl.training.aligned_batch import AlignedBatch
from simct_pl.training.lesson import Lesson
from simct_pl.types import Rollout, StepRecord, UnitAlignment, UnitStats


@dataclass(frozen=True)
class Grading:
    """What one teacher reads of a micro-batch.

    teacher: its name. members: places of its responses in the micro-batch, ascending; none, perhaps. weight: of its
    loss. aligned: these responses in both models' tokens.
    """

    teacher: str
    members: list[int]
    weight: float
    aligned: AlignedBatch

    def pick(self, items: Sequence[Any]) -> list[Any]:
        """Of one item a response of the micro-batch, those that belong to it."""
        return [items[i] for i in self.members]

    def rows(self, states_NH: Tensor, lengths: Sequence[int]) -> Tensor:
        """Its responses' rows, of those of the whole micro-batch; lengths: rows of each response."""
        if len(self.members) == len(lengths):
            return states_NH
        firsts = list(accumulate(lengths, initial=0))
        rows = [row for i in self.members for row in range(firsts[i], firsts[i + 1])]
        return states_NH.index_select(0, torch.tensor(rows, dtype=torch.int64, device=states_NH.device))


@dataclass(frozen=True)
class GradedBatch:
    """gradings: of every teacher, in the recipe's order, also those of nothing: ranks that share teachers run each of
    them as often.
    """

    gradings: list[Grading]

    @classmethod
    def of(
        cls,
        rollouts: Sequence[Rollout],
        lessons: Mapping[str, Lesson],
        graders: Sequence[Lesson | None],
        aligner: Aligner,
    ) -> GradedBatch:
        """Align each response with its graders' tokens.

        graders: of each rollout the only one, or None for all.

        Raises:
            TokenizerError, AlignmentError: see AlignedBatch.of.
        """
        gradings = []
        for name, lesson in lessons.items():
            for weight, members in _parts(lesson, lessons, graders):
                part = [rollouts[i] for i in members]
                aligned = AlignedBatch.of(part, lesson.pair, aligner, lesson.context, lesson.objective)
                gradings.append(Grading(name, members, weight, aligned))
        return cls(gradings)

    @property
    def alignments(self) -> list[UnitAlignment]:
        """Of every graded response, teacher by teacher: one that two teachers grade is there twice."""
        return [alignment for grading in self.gradings for alignment in grading.aligned.alignments]

    @property
    def members(self) -> list[int]:
        """Places in the micro-batch, in the order of `alignments`."""
        return [i for grading in self.gradings for i in grading.members]

    @property
    def teachers(self) -> list[str]:
        """Who graded it, in the same order."""
        return [grading.teacher for grading in self.gradings for _ in grading.members]

    @property
    def only(self) -> AlignedBatch:
        """Of a module with one teacher."""
        [grading] = self.gradings
        return grading.aligned

    @property
    def seconds(self) -> float:
        """What making it took."""
        return sum(grading.aligned.seconds for grading in self.gradings)

    def split(self, stats: UnitStats) -> list[UnitStats]:
        """Each graded response's part of the batch's statistics, on the CPU, in the order of `alignments`."""
        num_units = [int(alignment.supervised_U.sum()) for alignment in self.alignments]
        return stats.split(num_units, [alignment.num_supervised_student_tokens for alignment in self.alignments])


def _parts(
    lesson: Lesson, lessons: Mapping[str, Lesson], graders: Sequence[Lesson | None]
) -> list[tuple[float, list[int]]]:
    """(weight, places) of what a teacher grades together with all others, and of what it grades alone."""
    if len(lessons) == 1:
        return [(1.0, [*range(len(graders))])]
    total = sum(one.weight for one in lessons.values())
    parts = (lesson.weight / total, None), (1.0, lesson)
    return [(weight, [i for i, one in enumerate(graders) if one is grader]) for weight, grader in parts]


def record_of(
    rollouts: Sequence[Rollout],
    groups: Sequence[Sequence[int]],
    graded: Sequence[GradedBatch],
    stats: Sequence[Sequence[UnitStats]] | None = None,
    loss_sum: float = 0.0,
    num_global_tokens: int = 0,
) -> StepRecord:
    """What a step made of its micro-batches, in the order of its rollouts again.

    groups: places of each micro-batch's rollouts; idle ones are empty. stats: split, as each GradedBatch has them.
    """
    # (place of the rollout, micro-batch, place in it): micro-batches were cut by length.
    places = sorted(
        (group[member], number, i)
        for number, (group, batch) in enumerate(zip(groups, graded, strict=True))
        for i, member in enumerate(batch.members)
    )
    alignments, teachers = [batch.alignments for batch in graded], [batch.teachers for batch in graded]
    return StepRecord(
        [rollouts[place] for place, *_ in places],
        [alignments[number][i] for _, number, i in places],
        [] if stats is None else [stats[number][i] for _, number, i in places],
        loss_sum,
        num_global_tokens,
        [teachers[number][i] for _, number, i in places],
    )
