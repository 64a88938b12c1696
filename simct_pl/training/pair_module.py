"""The two models of a distillation, before their weights load: their folders, tokenizers and contexts.

In: a recipe's paths, adapters and load arguments. Out: what the rest of a run asks of them, or an error that says what
is wrong with a folder.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from simct_pl.errors import RecipeError
from simct_pl.losses.base import Objective
from simct_pl.losses.dual_space import DualSpaceObjective
from simct_pl.models.load_arguments import check_load_arguments, is_quantised
from simct_pl.models.loading import check_model_path, context_length, load_config
from simct_pl.models.sharding import Sharding
from simct_pl.tokenization.pair import TokenizerPair
from simct_pl.training.adapted import AdaptedModule
from simct_pl.training.chat import ChatSettings
from simct_pl.training.collectives import exchange_device
from simct_pl.training.teacher_server import TeacherServer


class PairModule(AdaptedModule):
    """A student, which may be adapters in front of a base model, and a teacher of another tokenizer.

    student_path, teacher_path: where weights are read from; of adapters, the base model's.
    """

    sharding: Sharding | None
    chat: ChatSettings
    trust_remote_code: tuple[str, ...]
    teacher_kwargs: Mapping[str, Any]
    teacher_server: TeacherServer | None
    objective: Objective | DualSpaceObjective

    def use_models(self, student: str, teacher: str, lora: dict[str, Any] | None) -> None:
        """Say which they are; nothing but an adapter's configuration is read yet."""
        self.student_path, self.teacher_path = self.use_lora("student", student, lora), os.path.expanduser(teacher)

    @property
    def tokenizer_path(self) -> str:
        """Where the student's tokenizer is."""
        return self.tokenizer_of(self.student_path)

    @property
    def starts_from(self) -> str:
        """What the recipe calls the student: an adapter folder, or the model itself."""
        return self.recipes_name_of(self.student_path)

    @cached_property
    def pair(self) -> TokenizerPair:
        """The tokenizers of both models. Their folders are looked at first: a wrong path explains more.

        Raises:
            SimctError: of the kind that fits.
        """
        for role, path in (("student", self.student_path), ("teacher", self.teacher_path)):
            check_model_path(role, path)
            load_config(role, path, role in self.trust_remote_code)
        return self.chat.load_pair(self.tokenizer_path, self.teacher_path)

    @cached_property
    def student_context(self) -> int | None:
        """Longest prompt + response of the student, in its tokens."""
        return context_length("student", self.student_path, "student" in self.trust_remote_code)

    @cached_property
    def teacher_context(self) -> int | None:
        """The same for the teacher, in its tokens; a server's limit may be lower than the model's."""
        own = context_length("teacher", self.teacher_path, "teacher" in self.trust_remote_code)
        return own if self.teacher_server is None else min(own or sys.maxsize, self.teacher_server.context)

    def check_teacher(self) -> None:
        """Whether the teacher can be loaded, or asked, as the recipe says.

        Raises:
            RecipeError, MissingPackageError: see check_load_arguments; for a quantised teacher that ranks would share,
                and load arguments of one on a server.
            SimctError: see TeacherServer.check.
        """
        if self.teacher_server is not None:
            if self.teacher_kwargs:
                raise RecipeError(
                    f"teacher_kwargs are {dict(self.teacher_kwargs)}, and the teacher's weights are on a server; give "
                    "them to the server, and leave them out here."
                )
            self.teacher_server.check(self.teacher_path, self.pair.teacher, self.objective)
            return
        check_load_arguments("teacher_kwargs", self.teacher_kwargs, exchange_device(self))
        config = load_config("teacher", self.teacher_path, "teacher" in self.trust_remote_code)
        if self.sharding is not None and self.sharding.shard_teacher and is_quantised(self.teacher_kwargs, config):
            raise RecipeError(
                "sharding.shard_teacher cannot share a quantised teacher: FSDP2 would cut its packed weights. Set it "
                "to false (each rank then has the small weights whole), or leave the quantisation out."
            )
