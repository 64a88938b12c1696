"""The models of a distillation, before their weights load: their folders, tokenizers and contexts.

In: a recipe's paths, adapters and load arguments. Out: what the rest of a run asks of them, or an error that says what
is wrong with a folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

from simct_pl.errors import PromptDataError, RecipeError
from simct_pl.losses.base import Objective
from simct_pl.losses.dual_space import DualSpaceObjective
from simct_pl.models.loading import DtypeName, check_model_path, context_length, load_config
from simct_pl.models.sharding import Sharding
from simct_pl.tokenization.pair import TokenizerPair
from simct_pl.training.adapted import AdaptedModule
from simct_pl.training.chat import ChatSettings
from simct_pl.training.lesson import TEACHER, Lesson, TeacherSettings, own_objective
from simct_pl.types import Prompt


class PairModule(AdaptedModule):
    """A student, which may be adapters in front of a base model, and its teacher of another tokenizer, or several.

    student_path: where weights are read from; of adapters, the base model's.
    lessons: one a teacher, by its name, in the recipe's order.
    """

    sharding: Sharding | None
    chat: ChatSettings
    trust_remote_code: tuple[str, ...]
    lessons: dict[str, Lesson]

    def use_models(
        self,
        student: str,
        teachers: Mapping[str, TeacherSettings],
        dtype: DtypeName,
        objective: Objective | DualSpaceObjective,
        lora: dict[str, Any] | None,
    ) -> None:
        """Say which they are; nothing but an adapter's configuration is read yet.

        dtype: of teachers that name none.
        """
        self.student_path = self.use_lora("student", student, lora)
        trusted = TEACHER in self.trust_remote_code
        self.lessons = {
            name: Lesson(
                name,
                replace(settings, dtype=settings.dtype or dtype),
                own_objective(objective, len(teachers)),
                trusted,
                self._load_tokenizers,
            )
            for name, settings in teachers.items()
        }

    @property
    def tokenizer_path(self) -> str:
        """Where the student's tokenizer is."""
        return self.tokenizer_of(self.student_path)

    @property
    def starts_from(self) -> str:
        """What the recipe calls the student: an adapter folder, or the model itself."""
        return self.recipes_name_of(self.student_path)

    @property
    def first_lesson(self) -> Lesson:
        """Of the only teacher, or of the first."""
        return next(iter(self.lessons.values()))

    @property
    def pair(self) -> TokenizerPair:
        """The tokenizers of the student and of the first teacher.

        Raises:
            SimctError: of the kind that fits.
        """
        return self.first_lesson.pair

    @property
    def objective(self) -> Objective | DualSpaceObjective:
        """The recipe's; of several teachers, the first one's copy."""
        return self.first_lesson.objective

    def lesson_of(self, prompt: Prompt) -> Lesson | None:
        """Of the teacher that alone grades the answers to a prompt; None if all do, as where there is but one.

        Raises:
            PromptDataError: if the prompt names a teacher that the recipe does not have.
        """
        if prompt.teacher is None:
            return None
        if prompt.teacher not in self.lessons:
            raise PromptDataError(
                f"Prompt {prompt.index} names teacher {prompt.teacher!r}; the recipe's are "
                f"{', '.join(map(repr, self.lessons))}. Name them so in model.init_args.teachers, or leave the data's "
                "teacher_name_field out."
            )
        return self.lessons[prompt.teacher]

    @cached_property
    def student_context(self) -> int | None:
        """Longest prompt + response of the student, in its tokens."""
        return context_length("student", self.student_path, "student" in self.trust_remote_code)

    def _load_tokenizers(self, teacher: str, arguments: Mapping[str, Any]) -> TokenizerPair:
        """Of the student and of a teacher; arguments: of that teacher's chat template."""
        check_model_path("student", self.student_path)
        load_config("student", self.student_path, "student" in self.trust_remote_code)
        return TokenizerPair.from_pretrained(self.tokenizer_path, teacher, self.chat.student, dict(arguments))


def settings_of(
    teacher: str | None,
    teachers: Mapping[str, TeacherSettings] | None,
    of_one: Mapping[str, Any],
) -> dict[str, TeacherSettings]:
    """The teachers by name, from a recipe that has one or several.

    of_one: what it says of a single one beside its path: kwargs, server, chat, temperature.

    Raises:
        RecipeError: for none, for both, and for values of a single teacher beside several.
    """
    if (teacher is None) == (not teachers):
        raise RecipeError(
            f"teacher is {teacher!r} and teachers are {sorted(teachers or ())}; expected one model folder in teacher, "
            "or names with their models in teachers and teacher: null."
        )
    if teacher is not None:
        return {TEACHER: TeacherSettings(teacher, **of_one)}
    places = {
        "kwargs": "teacher_kwargs",
        "server": "teacher_server",
        "chat": "chat.teacher",
        "temperature": "teacher_temperature",
    }
    given = [places[name] for name, value in of_one.items() if value and value != 1.0]
    if given:
        raise RecipeError(
            f"{', '.join(given)} belong to a single teacher, and there are several; say them of each one, as kwargs, "
            "server, chat and temperature in teachers."
        )
    assert teachers
    for name in teachers:
        if name == "student" or not name.replace("_", "").replace("-", "").isalnum():
            raise RecipeError(
                f"A teacher is called {name!r}; expected letters, digits, - and _, and not student: metrics and tables "
                "are named so."
            )
    return dict(teachers)
