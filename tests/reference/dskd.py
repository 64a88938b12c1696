"""DSKD in float64, one token and one pair of positions at a time (arXiv 2406.17328; 2504.11426 for exact alignment).

Dense and slow: whole logit rows, explicit attention weights, numpy's pseudo-inverse. Nothing is shared with simct_pl.
The divergence is KL(guide || model) in both spaces.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tests.reference.vocabulary import STOP, Side, Unit, candidate_ids, shared_candidates


@dataclass(frozen=True)
class Model:
    """One model's part: vocabulary, head [vocabulary, width], input embeddings [vocabulary, width]."""

    side: Side
    head: Tensor
    embeddings: Tensor


@dataclass(frozen=True)
class Response:
    """Ids with the prompt's last id in front, and the states that predict all but that one."""

    units: list[Unit]
    student_ids: list[int]
    teacher_ids: list[int]
    student_states: Tensor
    teacher_states: Tensor


def starting_projector(source: Model, target: Model) -> np.ndarray:
    """A [target width, source width] that keeps the shared tokens' logits: pinv(W_target) W_source."""
    shared = shared_candidates(source.side, target.side)
    rows = [
        model.head.detach().numpy()[[candidate_ids(model.side, candidate)[0] for candidate in shared]]
        for model in (source, target)
    ]
    return np.linalg.pinv(rows[1], rcond=0.01) @ rows[0]


def starting_query(student: Model, teacher: Model) -> np.ndarray:
    """Two blocks, each pinv(E_S) E_T / std(E_T), transposed."""
    shared = shared_candidates(student.side, teacher.side)
    rows = [
        model.embeddings.detach().numpy()[[candidate_ids(model.side, candidate)[0] for candidate in shared]]
        for model in (student, teacher)
    ]
    half = (np.linalg.pinv(rows[0], rcond=0.01) @ rows[1]).T / np.std(teacher.embeddings.detach().numpy(), ddof=1)
    return np.block([[half, np.zeros_like(half)], [np.zeros_like(half), half]])


def in_both_spaces(
    student: Model,
    teacher: Model,
    own: tuple[Tensor, Tensor | None],
    theirs: tuple[Tensor, Tensor | None],
    label: int,
) -> Tensor:
    """The loss of one student row (state, translated teacher state) and of one teacher row; either may be left out."""
    loss = torch.zeros((), dtype=torch.float64)
    if own[1] is not None:
        guide = (student.head.detach() @ own[1]).log_softmax(-1)
        loss = loss - guide[label]
        if int(guide.argmax()) == label:
            loss = loss + kl(guide.detach(), (student.head @ own[0]).log_softmax(-1))
    if theirs[1] is not None:
        loss = loss + kl(
            (teacher.head.detach() @ theirs[0]).log_softmax(-1), (teacher.head.detach() @ theirs[1]).log_softmax(-1)
        )
    return loss


def kl(logp: Tensor, logq: Tensor) -> Tensor:
    return sum((p.exp() * (p - q) for p, q in zip(logp, logq, strict=True)), torch.zeros((), dtype=torch.float64))


def eta_loss(student: Model, teacher: Model, to_student: Tensor, to_teacher: Tensor, response: Response) -> Tensor:
    """Both terms at every 1:1 unit of a shared token at which the student has the teacher's favourite."""
    total, shared = torch.zeros((), dtype=torch.float64), shared_candidates(student.side, teacher.side)
    for unit in response.units:
        if (len(unit.student_ids), len(unit.teacher_ids)) != (1, 1):
            continue
        if not unit.is_stop and unit.text not in shared:
            continue
        own, theirs = response.student_states[unit.student_start], response.teacher_states[unit.teacher_start]
        label = _in_students_vocabulary(student.side, teacher.side, int((teacher.head @ theirs).argmax()))
        if label is not None:
            pairs = (own, to_student @ theirs), (theirs, to_teacher @ own)
            total = total + in_both_spaces(student, teacher, *pairs, label)
    return total


def _in_students_vocabulary(student: Side, teacher: Side, favourite: int) -> int | None:
    shared = shared_candidates(student, teacher)
    if favourite in teacher.stop_ids:
        return student.stop_ids[0] if STOP in shared else None
    for candidate in shared:
        if candidate != STOP and candidate_ids(teacher, candidate) == [favourite]:
            return candidate_ids(student, candidate)[0]
    return None


def cma_loss(
    student: Model, teacher: Model, to_student: Tensor, to_teacher: Tensor, query: Tensor, response: Response
) -> Tensor:
    """Every row of the response, guided by what it attends to."""
    states, std = response.teacher_states, teacher.embeddings.std()
    read, following = (teacher.embeddings[ids] / std for ids in (response.teacher_ids[:-1], response.teacher_ids[1:]))
    keys = torch.cat([read, following], 1)
    values = [to_student @ (state / states.std() + e) for state, e in zip(states, following, strict=True)]
    queries = [
        query @ torch.cat([student.embeddings[before], student.embeddings[after]])
        for before, after in zip(response.student_ids[:-1], response.student_ids[1:], strict=True)
    ]
    similar = torch.stack([torch.stack([q @ k for k in keys]) for q in queries]) / math.sqrt(keys.shape[1])
    back = [to_teacher @ state for state in response.student_states]
    total = torch.zeros((), dtype=torch.float64)
    for i, own in enumerate(response.student_states):
        weights = similar[i].exp() / similar[i].exp().sum()
        guide = sum((w * v for w, v in zip(weights, values, strict=True)), torch.zeros_like(own))
        total = total + in_both_spaces(student, teacher, (own, guide), (own, None), response.student_ids[i + 1])
    for j, theirs in enumerate(states):
        weights = similar[:, j].exp() / similar[:, j].exp().sum()
        heard = sum((w * v for w, v in zip(weights, back, strict=True)), torch.zeros_like(theirs))
        total = total + in_both_spaces(student, teacher, (theirs, None), (theirs, heard), 0)
    return total
