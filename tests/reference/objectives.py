"""Baselines in float64, one unit at a time, written from their papers' equations with plain probabilities.

Nothing here is stable or fast: products of probabilities, whole sorts, loops. Gradients are torch's own. Logits are
float64 tensors [tokens, vocabulary] whose row i predicts response token i.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from tests.reference.scenes import Scene
from tests.reference.vocabulary import Unit, candidate_ids, greedy_ids, shared_candidates

# (scene, unit, probabilities of each student row of the unit, of each teacher row) -> loss, or None if not graded
UnitReference = Callable[[Scene, Unit, Tensor, Tensor], Tensor | None]


def response_loss(reference: UnitReference, scene: Scene, student_SV: Tensor, teacher_TV: Tensor) -> Tensor:
    """Sum over the units of a response."""
    total = torch.zeros((), dtype=torch.float64)
    for unit in scene.units:
        student = student_SV[unit.student_start : unit.student_start + len(unit.student_ids)].softmax(-1)
        teacher = teacher_TV[unit.teacher_start : unit.teacher_start + len(unit.teacher_ids)].softmax(-1)
        found = reference(scene, unit, student, teacher.detach())
        total = total if found is None else total + found
    return total


def realised(probs_kV: Tensor, ids: tuple[int, ...]) -> Tensor:
    """Probability of each realised token, [k]."""
    return torch.stack([probs_kV[i, token_id] for i, token_id in enumerate(ids)])


def padded_l1(student: Tensor, teacher: Tensor) -> Tensor:
    """Sorted, the shorter one padded with zeros, absolute differences added up."""
    width = max(len(student), len(teacher))
    ranked = [F.pad(one.sort(descending=True).values, (0, width - len(one))) for one in (student, teacher)]
    return (ranked[0] - ranked[1]).abs().sum()


def uld(weight: float, top_k: int | None) -> UnitReference:
    """arXiv 2402.12030, Eq. 6, at 1:1 units; with top_k the rest is one number."""

    def reference(scene: Scene, unit: Unit, student_kV: Tensor, teacher_kV: Tensor) -> Tensor | None:
        if len(student_kV) != 1 or len(teacher_kV) != 1:
            return None
        if top_k is None:
            return weight * padded_l1(student_kV[0], teacher_kV[0])
        tops = [one[0].sort(descending=True).values[:top_k] for one in (student_kV, teacher_kV)]
        return weight * (padded_l1(*tops) + ((1 - tops[0].sum()) - (1 - tops[1].sum())).abs())

    return reference


def alm(divergence: str, tau: float | None) -> UnitReference:
    """arXiv 2503.20083: Bernoulli(p^(1 / tau)), p the unit's probability; the limit as it is written."""

    def reference(scene: Scene, unit: Unit, student_kV: Tensor, teacher_kV: Tensor) -> Tensor:
        p_student, p_teacher = (
            realised(student_kV, unit.student_ids).prod(),
            realised(teacher_kV, unit.teacher_ids).prod(),
        )
        if tau is None:
            l_student, l_teacher = p_student.log(), p_teacher.log()
            if divergence == "tvd":
                return (l_teacher - l_student).abs()
            return (l_teacher - l_student) + l_teacher * (l_student / l_teacher).log()
        head_student, head_teacher = p_student ** (1 / tau), p_teacher ** (1 / tau)
        if divergence == "tvd":
            return (head_student - head_teacher).abs()
        tails = (1 - head_teacher) * ((1 - head_teacher) / (1 - head_student)).log()
        return head_teacher * (head_teacher / head_student).log() + tails

    return reference


# Events of the student and of the teacher that are compared by name: the ids of each
Match = tuple[list[int], list[int]]


def same_bytes(scene: Scene) -> list[Match]:
    """Tokens of equal bytes, and any stop with any stop."""
    names = shared_candidates(scene.student, scene.teacher)
    return [(candidate_ids(scene.student, name), candidate_ids(scene.teacher, name)) for name in names]


def best_of_projection(threshold: float, decay: float) -> Callable[[Scene], list[Match]]:
    """arXiv 2605.21699: each student token wants the teacher token that it gives most, at least the threshold; who
    gives most has it, of equals the one that stands for its bytes, then the lower id.
    """

    def matches(scene: Scene) -> list[Match]:
        chief = {scene.student.stop_ids[0], *scene.student.ids_by_bytes().values()}
        wishes: dict[int, list[tuple[float, bool, int]]] = {}
        for source, row in enumerate(projection_of(scene, decay)):
            weight, target = max(((w, -target) for target, w in row.items()), default=(0.0, 0))
            if weight >= threshold:
                wishes.setdefault(-target, []).append((-weight, source not in chief, source))
        found = [([min(wanting)[2]], [target]) for target, wanting in sorted(wishes.items())]
        stops = ([scene.student.stop_ids[0]], [scene.teacher.stop_ids[0]])
        return [(list(scene.student.stop_ids), list(scene.teacher.stop_ids)) if m == stops else m for m in found]

    return matches


def gold(
    merge: str,
    beta: float,
    matched_weight: float | None,
    matches: Callable[[Scene], list[Match]] = same_bytes,
) -> UnitReference:
    """TRL's description: one position's distribution times the unit's other realised tokens; by name, then by rank."""

    def reference(scene: Scene, unit: Unit, student_kV: Tensor, teacher_kV: Tensor) -> Tensor:
        names = matches(scene)
        masses, by_name, by_rank = [], [], []
        for side, probs_kV, ids in ((0, student_kV, unit.student_ids), (1, teacher_kV, unit.teacher_ids)):
            base = 0 if merge == "first" else len(ids) - 1
            others = [probs_kV[i, token_id] for i, token_id in enumerate(ids) if i != base]
            mass = probs_kV[base] * math.prod(others)
            matched = {token_id for match in names for token_id in match[side]}
            masses.append(mass)
            by_name.append(torch.stack([mass[match[side]].sum() for match in names]).clamp_min(1e-8))
            by_rank.append(mass[[i for i in range(len(mass)) if i not in matched]])
        mixture = beta * by_name[1] + (1 - beta) * by_name[0]
        if beta in (0, 1):
            source, target = (by_name[1], by_name[0]) if beta == 0 else (by_name[0], by_name[1])
            jsd = (source * (source / target).log()).sum()
        else:
            parts = [(one * (one / mixture).log()).sum() for one in (by_name[1], by_name[0])]
            jsd = beta * parts[0] + (1 - beta) * parts[1]
        weight = len(names) / len(masses[1]) if matched_weight is None else matched_weight
        return weight * jsd + (1 - weight) * padded_l1(*by_rank)

    return reference


def projection_of(scene: Scene, decay: float) -> list[dict[int, float]]:
    """W as a dictionary a student token: teacher token -> weight. Control tokens and parts of characters have none."""
    shared = shared_candidates(scene.student, scene.teacher)
    rows: list[dict[int, float]] = []
    for token_id, token in enumerate(scene.student.tokens):
        row: dict[int, float] = {}
        if token_id in scene.student.stop_ids:
            row = {scene.teacher.stop_ids[0]: 1.0}
        elif token and token in shared:
            row = {scene.teacher.ids_by_bytes()[token]: 1.0}
        elif token and _is_text(token) and set(token) <= {byte for t in scene.teacher.ids_by_bytes() for byte in t}:
            pieces = greedy_ids(scene.teacher, token)
            total = sum(decay**j for j in range(len(pieces)))
            for j, piece in enumerate(pieces):
                row[piece] = row.get(piece, 0.0) + decay**j / total
        rows.append(row)
    return rows


def _is_text(token: bytes) -> bool:
    try:
        token.decode()
    except UnicodeDecodeError:
        return False
    return True


def xtoken_pkl(decay: float) -> UnitReference:
    """arXiv 2605.21699: mean distributions of the unit, the student's through a dense W; KL(T || S W) where reached."""

    def reference(scene: Scene, unit: Unit, student_kV: Tensor, teacher_kV: Tensor) -> Tensor:
        rows = projection_of(scene, decay)
        dense = torch.zeros(student_kV.shape[1], teacher_kV.shape[1], dtype=torch.float64)
        for source, row in enumerate(rows):
            for target, weight in row.items():
                dense[source, target] = weight
        reached = dense.sum(0) > 0
        means = teacher_kV.mean(0)
        stopping = torch.arange(len(means)) == scene.teacher.stop_ids[0]
        means = torch.where(stopping, means[list(scene.teacher.stop_ids)].sum(), means)  # any stop is the stop
        student, teacher = (student_kV.mean(0) @ dense)[reached], means[reached]
        student, teacher = student / student.sum(), teacher / teacher.sum()
        return (teacher * (teacher / student).log()).sum()

    return reference


def dpca(clip: float | None) -> UnitReference:
    """arXiv 2606.09456: the unit's gap, shared out by each token's part of the student's log-probability."""

    def reference(scene: Scene, unit: Unit, student_kV: Tensor, teacher_kV: Tensor) -> Tensor:
        logs = realised(student_kV, unit.student_ids).log()
        gap = float(realised(teacher_kV, unit.teacher_ids).prod().log() - logs.sum().detach())
        if clip is not None:
            gap = max(-clip, min(clip, gap))
        parts = [gap * float(log / logs.sum()) for log in logs.detach()]
        return -sum((part * log for part, log in zip(parts, logs, strict=True)), torch.zeros((), dtype=torch.float64))

    return reference


def cross_entropy() -> UnitReference:
    """Minus the log of the product of the student's probabilities."""

    def reference(scene: Scene, unit: Unit, student_kV: Tensor, teacher_kV: Tensor) -> Tensor:
        return -realised(student_kV, unit.student_ids).prod().log()

    return reference


def mixture(*parts: tuple[float, UnitReference]) -> UnitReference:
    """Weighted sum."""

    def reference(scene: Scene, unit: Unit, student_kV: Tensor, teacher_kV: Tensor) -> Tensor | None:
        found = [(weight, one(scene, unit, student_kV, teacher_kV)) for weight, one in parts]
        graded = [weight * loss for weight, loss in found if loss is not None]
        return torch.stack(graded).sum() if graded else None

    return reference
