"""The models that only read: the teacher, here or on a server, and the student that a run began with.

In: what a DistillModule says of them. Out: what StudentWithLoss asks for rows. Loading is collective.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch.distributed.device_mesh import DeviceMesh

from simct_pl.models.loading import DtypeName, load_config
from simct_pl.models.lora import Lora
from simct_pl.models.sharding import Sharding
from simct_pl.training.lesson import TEACHER, Lesson
from simct_pl.training.teacher import FrozenTeacher, load_frozen
from simct_pl.training.teacher_server import RemoteTeacher

Teacher = FrozenTeacher | RemoteTeacher


class Distilling(Protocol):
    """What of a DistillModule says which models read, and where they are."""

    student_path: str
    teacher_dtype: DtypeName
    teacher_batch_tokens: int
    micro_batch_tokens: int
    trust_remote_code: tuple[str, ...]
    sharding: Sharding | None

    @property
    def start(self) -> Lora | None: ...

    @property
    def mesh(self) -> DeviceMesh: ...


def load_teacher(module: Distilling, lesson: Lesson, device: torch.device) -> Teacher:
    """A lesson's teacher; one on a server is asked, and its weights are not loaded."""
    if lesson.server is None:
        size, mesh = module.teacher_batch_tokens, _mesh(module)
        own = lesson.trusted, device, mesh, None, lesson.load_arguments
        return load_frozen(TEACHER, lesson.path, lesson.dtype, size, *own).at(lesson.temperature)
    config = load_config(TEACHER, lesson.path, lesson.trusted)
    return RemoteTeacher(lesson.server, config.get_text_config().vocab_size, device)


def load_start(module: Distilling, device: torch.device) -> FrozenTeacher:
    """The student as the recipe's path has it."""
    path, dtype, size = module.student_path, module.teacher_dtype, module.micro_batch_tokens
    trusted = "student" in module.trust_remote_code
    return load_frozen("student", path, dtype, size, trusted, device, _mesh(module), module.start)


def _mesh(module: Distilling) -> DeviceMesh | None:
    """Of the ranks that share what only reads, if they do."""
    return module.mesh if module.sharding is not None and module.sharding.shard_teacher else None
