"""The models that only read: the teacher, here or on a server, and the student that a run began with.

In: what a DistillModule says of them. Out: what StudentWithLoss asks for rows. Loading is collective.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch.distributed.device_mesh import DeviceMesh

from simct_pl.models.loading import DtypeName, load_config
from simct_pl.models.lora import Lora
from simct_pl.models.sharding import Sharding
from simct_pl.training.teacher import FrozenTeacher, load_frozen
from simct_pl.training.teacher_server import RemoteTeacher, TeacherServer

Teacher = FrozenTeacher | RemoteTeacher


class Distilling(Protocol):
    """What of a DistillModule says which models read, and where they are."""

    student_path: str
    teacher_path: str
    teacher_server: TeacherServer | None
    teacher_dtype: DtypeName
    teacher_batch_tokens: int
    micro_batch_tokens: int
    trust_remote_code: tuple[str, ...]
    sharding: Sharding | None
    teacher_kwargs: Mapping[str, Any]

    @property
    def start(self) -> Lora | None: ...

    @property
    def mesh(self) -> DeviceMesh: ...


def load_teacher(module: Distilling, device: torch.device) -> Teacher:
    """The teacher; one on a server is asked, and its weights are not loaded."""
    if module.teacher_server is None:
        return _frozen(module, "teacher", module.teacher_path, module.teacher_batch_tokens, device)
    config = load_config("teacher", module.teacher_path, "teacher" in module.trust_remote_code)
    return RemoteTeacher(module.teacher_server, config.get_text_config().vocab_size, device)


def load_start(module: Distilling, device: torch.device) -> FrozenTeacher:
    """The student as the recipe's path has it."""
    return _frozen(module, "student", module.student_path, module.micro_batch_tokens, device)


def _frozen(module: Distilling, role: str, path: str, batch_tokens: int, device: torch.device) -> FrozenTeacher:
    mesh = module.mesh if module.sharding is not None and module.sharding.shard_teacher else None
    own = (module.start, None) if role == "student" else (None, module.teacher_kwargs)
    trusted = role in module.trust_remote_code
    return load_frozen(role, path, module.teacher_dtype, batch_tokens, trusted, device, mesh, *own)
