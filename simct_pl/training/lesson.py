"""One of a student's teachers before its weights load: its folder, its tokenizer beside the student's, its context.

In: a recipe's values. Out: what the rest of a run asks of that pair, or an error that says what is wrong with it.
"""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from simct_pl.errors import RecipeError
from simct_pl.losses.base import Objective
from simct_pl.losses.dual_space import DualSpaceObjective
from simct_pl.losses.inputs.vocab_tables import PairTables
from simct_pl.models.load_arguments import check_load_arguments, is_quantised
from simct_pl.models.loading import DtypeName, check_model_path, context_length, load_config
from simct_pl.models.sharding import Sharding
from simct_pl.tokenization.pair import TokenizerPair
from simct_pl.training.teacher_server import TeacherServer

TEACHER = "teacher"  # what the only teacher is called


@dataclass(frozen=True)
class TeacherSettings:
    """One of several teachers, in a recipe.

    model: folder or hub name. weight: of its loss, by the sum over the teachers that grade the same response.
    dtype: of the weights; null: teacher_dtype. kwargs, server: as teacher_kwargs and teacher_server of a single one.
    chat: arguments of its chat template. temperature: what its logits are divided by; below 1 it teaches what it would
    sample more surely.

    Raises:
        RecipeError: for a weight or temperature that is not positive.
    """

    model: str
    weight: float = 1.0
    dtype: DtypeName | None = None
    kwargs: dict[str, Any] = field(default_factory=dict)
    server: TeacherServer | None = None
    chat: dict[str, Any] = field(default_factory=dict)
    temperature: float = 1.0

    def __post_init__(self) -> None:
        for name in ("weight", "temperature"):
            if not 0 < (value := getattr(self, name)) < float("inf"):
                raise RecipeError(f"{name} of teacher {self.model!r} is {value}; expected a number above 0.")


class Lesson:
    """A teacher, the tokenizers of the student and of this teacher, and the objective between the two.

    Args:
        name: what a row, a metric and an error call it. settings: the recipe's, dtype filled in.
        objective: prepared for this pair, so of this lesson alone.
        trusted: whether the model's own Python code may run.
        load_tokenizers: reads both, when they are first asked for.
    """

    def __init__(
        self,
        name: str,
        settings: TeacherSettings,
        objective: Objective | DualSpaceObjective,
        trusted: bool,
        load_tokenizers: Callable[[str, Mapping[str, Any]], TokenizerPair],
    ) -> None:
        assert settings.dtype is not None
        self.name, self.weight, self.objective, self.trusted = name, settings.weight, objective, trusted
        self.path = os.path.expanduser(settings.model)
        self.dtype: DtypeName = settings.dtype
        self.load_arguments, self.server, self.temperature = settings.kwargs, settings.server, settings.temperature
        self._chat, self._load_tokenizers = settings.chat, load_tokenizers

    @cached_property
    def pair(self) -> TokenizerPair:
        """The tokenizers. The teacher's folder is looked at first: a wrong path explains more.

        Raises:
            SimctError: of the kind that fits.
        """
        check_model_path(TEACHER, self.path)
        load_config(TEACHER, self.path, self.trusted)
        return self._load_tokenizers(self.path, self._chat)

    @cached_property
    def context(self) -> int | None:
        """Longest prompt + response, in the teacher's tokens; a server's limit may be lower than the model's."""
        own = context_length(TEACHER, self.path, self.trusted)
        return own if self.server is None else min(own or sys.maxsize, self.server.context)

    def check(self, sharding: Sharding | None, device: torch.device) -> None:
        """Whether the teacher can be loaded, or asked, as the recipe says; prepares the objective.

        device: where ranks exchange tensors.

        Raises:
            RecipeError, MissingPackageError: see check_load_arguments; for a quantised teacher that ranks would share,
                and load arguments of one on a server.
            SimctError: see TeacherServer.check.
        """
        # Reading them raises what there is to raise: a model without a stop, a tokenizer without exact bytes.
        _ = self.pair.student.stop_ids, self.pair.teacher.stop_ids, self.pair.shared_vocab
        if self.server is not None:
            self._check_server(self.server)
        else:
            self._check_weights(sharding, device)
        self.objective.prepare(self.pair)

    def _check_server(self, server: TeacherServer) -> None:
        if self.load_arguments:
            raise RecipeError(
                f"teacher_kwargs are {dict(self.load_arguments)}, and the teacher's weights are on a server; give "
                "them to the server, and leave them out here."
            )
        if self.temperature != 1.0:
            raise RecipeError(
                f"teacher_temperature is {self.temperature}, and the teacher is on a server, which lists likely tokens "
                "at temperature 1. Leave one of the two out."
            )
        server.check(self.path, self.pair.teacher, self.objective)

    def _check_weights(self, sharding: Sharding | None, device: torch.device) -> None:
        check_load_arguments("teacher_kwargs", self.load_arguments, device)
        config = load_config(TEACHER, self.path, self.trusted)
        if sharding is not None and sharding.shard_teacher and is_quantised(self.load_arguments, config):
            raise RecipeError(
                "sharding.shard_teacher cannot share a quantised teacher: FSDP2 would cut its packed weights. Set it "
                "to false (each rank then has the small weights whole), or leave the quantisation out."
            )

    def tables(self, device: torch.device) -> PairTables:
        """Of both vocabularies, made once."""
        if self._tables is None or self._tables[0] != device:
            with torch.inference_mode(False):  # validation may come first
                self._tables = device, PairTables.build(self.pair.shared_vocab, device)
        return self._tables[1]

    _tables: tuple[torch.device, PairTables] | None = None


def own_objective(objective: Objective | DualSpaceObjective, num_teachers: int) -> Objective | DualSpaceObjective:
    """The recipe's, or a copy of it: preparing it for one pair must not undo what another has prepared."""
    return objective if num_teachers == 1 else copy.deepcopy(objective)
