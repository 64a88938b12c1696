"""The models that only read: the teacher, here or on a server, and the student that a run began with.

In: a DistillModule. Out: what StudentWithLoss asks for rows. Loading is collective.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from simct_pl.models.loading import context_length, load_config
from simct_pl.training.collectives import exchange_device
from simct_pl.training.teacher import FrozenTeacher, load_frozen
from simct_pl.training.teacher_server import RemoteTeacher

if TYPE_CHECKING:
    from simct_pl.training.module import DistillModule

Teacher = FrozenTeacher | RemoteTeacher


def teacher_context(module: DistillModule) -> int | None:
    """Longest prompt + response that the teacher reads; a server's limit may be lower than the model's."""
    own = context_length("teacher", module.teacher_path, "teacher" in module.trust_remote_code)
    if module.teacher_server is None:
        return own
    return min(own or sys.maxsize, module.teacher_server.context)


def load_teacher(module: DistillModule) -> Teacher:
    """The teacher; one on a server is asked, and its weights are not loaded."""
    if module.teacher_server is None:
        return _frozen(module, "teacher", module.teacher_path, module.teacher_batch_tokens)
    config = load_config("teacher", module.teacher_path, "teacher" in module.trust_remote_code)
    return RemoteTeacher(module.teacher_server, config.get_text_config().vocab_size, exchange_device(module))


def load_start(module: DistillModule) -> FrozenTeacher:
    """The student as the recipe's path has it."""
    return _frozen(module, "student", module.student_path, module.micro_batch_tokens)


def _frozen(module: DistillModule, role: str, path: str, batch_tokens: int) -> FrozenTeacher:
    mesh = module.mesh if module.sharding is not None and module.sharding.shard_teacher else None
    trust = role in module.trust_remote_code
    return load_frozen(role, path, module.teacher_dtype, batch_tokens, trust, exchange_device(module), mesh)
