"""Divergences between two distributions over the same candidates, one float at a time.

Inputs are log-probabilities, student first. A candidate that both sides exclude (-inf twice) adds nothing.
Directions: rkl = KL(S||T), kl = KL(T||S). Mixtures and weights as the sources print them: jsd arXiv 2306.13649,
skl and srkl arXiv 2402.03898, akl arXiv 2404.02657 (its weights are constants for the gradient).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

Logs = Sequence[float]


def kl(p_logs: Logs, q_logs: Logs) -> float:
    """KL(p || q) with 0 log 0 = 0; infinite where q excludes what p does not."""
    return math.fsum(math.exp(p) * (p - q) for p, q in zip(p_logs, q_logs, strict=True) if p > -math.inf)


def mixture(p_logs: Logs, q_logs: Logs, weight_of_p: float) -> list[float]:
    """log of weight * p + (1 - weight) * q."""
    return [
        log_sum([p + math.log(weight_of_p), q + math.log1p(-weight_of_p)]) for p, q in zip(p_logs, q_logs, strict=True)
    ]


def log_sum(logs: Logs) -> float:
    """log of a sum of exponentials; -inf for an empty sum."""
    top = max(logs, default=-math.inf)
    return top if math.isinf(top) else top + math.log(math.fsum(math.exp(value - top) for value in logs))


def head_of_teacher(teacher_logs: Logs, share: float = 0.5) -> set[int]:
    """The fewest candidates, likeliest for the teacher first, that together reach the share."""
    head: set[int] = set()
    mass = 0.0
    for column in sorted(range(len(teacher_logs)), key=lambda column: -teacher_logs[column]):
        if mass >= share:
            break
        head.add(column)
        mass += math.exp(teacher_logs[column])
    return head


def adaptive_weights(student_logs: Logs, teacher_logs: Logs) -> tuple[float, float]:
    """akl's weights of forward and of reverse KL: the share of |S - T| on the teacher's head, and on its tail."""
    head = head_of_teacher(teacher_logs)
    gaps = [abs(math.exp(s) - math.exp(t)) for s, t in zip(student_logs, teacher_logs, strict=True)]
    total = math.fsum(gaps)
    if total == 0:
        return 0.5, 0.5
    on_head = math.fsum(gap for column, gap in enumerate(gaps) if column in head)
    return on_head / total, 1 - on_head / total


def divergence(name: str, student_logs: Logs, teacher_logs: Logs, *, jsd_beta: float = 0.5, skew: float = 0.1) -> float:
    """The divergence of that name."""
    if name == "rkl":
        return kl(student_logs, teacher_logs)
    if name == "kl":
        return kl(teacher_logs, student_logs)
    if name == "jsd":
        middle = mixture(teacher_logs, student_logs, jsd_beta)
        return jsd_beta * kl(teacher_logs, middle) + (1 - jsd_beta) * kl(student_logs, middle)
    if name == "skl":
        return kl(teacher_logs, mixture(teacher_logs, student_logs, skew))
    if name == "srkl":
        return kl(student_logs, mixture(student_logs, teacher_logs, skew))
    if name == "akl":
        forward, reverse = adaptive_weights(student_logs, teacher_logs)
        return forward * kl(teacher_logs, student_logs) + reverse * kl(student_logs, teacher_logs)
    if name == "tvd":
        pairs = zip(student_logs, teacher_logs, strict=True)
        return 0.5 * math.fsum(abs(math.exp(s) - math.exp(t)) for s, t in pairs)
    if name == "top1_ce":
        top = max(range(len(teacher_logs)), key=lambda column: teacher_logs[column])
        return -math.exp(teacher_logs[top]) * student_logs[top]
    raise AssertionError(name)
