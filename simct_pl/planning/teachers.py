"""The teachers of a plan: which of them is rehearsed, and what the others hold beside it.

In: a module's lessons. Out: sizes and MemoryItems. Teachers take turns in a step, so the largest stands for all.
"""

from __future__ import annotations

from dataclasses import dataclass

from simct_pl.models.load_arguments import bits_a_weight
from simct_pl.models.loading import torch_dtype
from simct_pl.planning.memory import MemoryItem, another_teacher, heads_of
from simct_pl.planning.rehearsing import student_source, teacher_source
from simct_pl.planning.step import StepShape
from simct_pl.rehearsal.models import ModelSize, size_of
from simct_pl.training.lesson import Lesson
from simct_pl.training.module import DistillModule


@dataclass(frozen=True)
class PlannedTeachers:
    """sizes: by name. largest: of those that are here, or, if all are on servers, of all. others: also here."""

    sizes: dict[str, ModelSize]
    largest: Lesson
    others: list[Lesson]

    @classmethod
    def of(cls, module: DistillModule) -> PlannedTeachers:
        """Size all of them.

        Raises:
            UnsupportedModelError: if a model cannot be built.
        """
        sizes = {name: size_of(teacher_source(lesson)) for name, lesson in module.lessons.items()}
        here = [lesson for lesson in module.lessons.values() if lesson.server is None]
        candidates = here or [*module.lessons.values()]
        largest = max(candidates, key=lambda lesson: sizes[lesson.name].parameters)
        return cls(sizes, largest, [lesson for lesson in here if lesson is not largest])

    @property
    def here(self) -> list[ModelSize]:
        """Of those whose weights this run loads."""
        return [self.sizes[one.name] for one in (self.largest, *self.others) if one.server is None]

    def items_beside(self, module: DistillModule, step: StepShape) -> list[MemoryItem]:
        """What the others hold while the largest is rehearsed."""
        items = [
            another_teacher(self.sizes[one.name], torch_dtype(one.dtype), step, bits_a_weight(one.load_arguments))
            for one in self.others
        ]
        if len(self.sizes) > 1:
            config = student_source(module).config.get_text_config()
            items.append(heads_of(len(self.sizes) - 1, config.vocab_size, config.hidden_size))
        return items
