"""The same loss as tests/reference/simct.py as dense float64 algebra, so that autograd gives every gradient.

Probabilities, not logs: a 0/1 matrix sends vocabulary ids to columns, products make the unit, subtraction the rest.
Good for moderate logits only. The value is compared with the reference of loops before any gradient is believed.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor

from tests.reference.divergences import adaptive_weights
from tests.reference.simct import Variant, is_graded, is_one_shared_token, readings
from tests.reference.vocabulary import Candidate, Side, Unit, bucket_of, candidate_ids, shared_candidates


@cache
def membership(side: Side, shared: tuple[Candidate, ...], width: int, marginal: bool) -> Tensor:
    """[width, V] with a one where an id's probability belongs to a column."""
    matrix = torch.zeros(width, len(shared), dtype=torch.float64)
    for column, candidate in enumerate(shared):
        for token_id in range(len(side.tokens)):
            inside = (
                bucket_of(side, token_id, shared) == candidate
                if marginal
                else token_id in candidate_ids(side, candidate)
            )
            matrix[token_id, column] = float(inside)
    return matrix


def candidate_weights(
    side: Side, ids: tuple[int, ...], logits_kW: Tensor, unit: Unit, shared: tuple[Candidate, ...], variant: Variant
) -> Tensor:
    """[C] non-negative weights whose normalisation is q: exp of the scores of columns, unit and rest."""
    matrix = membership(side, shared, logits_kW.shape[1], variant.prefix == "marginal")
    probs_kW = logits_kW.softmax(-1)
    positions = torch.arange(len(ids))
    own = probs_kW[positions, list(ids)]
    columns = probs_kW[0] @ matrix
    held = columns
    weights = [columns]
    if not is_one_shared_token(unit, shared):
        columns = _handle_prefixes(columns, matrix[ids[0]], own.prod(), unit, shared, variant.prefix)
        held = torch.cat([columns, own.prod()[None]])
        weights = [columns, _unit_weight(own, logits_kW, positions, ids, variant.score)[None]]
    if variant.rest:
        weights.append((1 - held.sum())[None])
    return torch.cat(weights)


def _handle_prefixes(
    columns: Tensor, own_column: Tensor, unit_prob: Tensor, unit: Unit, shared: tuple[Candidate, ...], prefix: str
) -> Tensor:
    if prefix == "mask":
        keep = [not (isinstance(c, bytes) and c != unit.text and unit.text.startswith(c)) for c in shared]
        return columns * torch.tensor(keep, dtype=torch.float64)
    if prefix in ("subtract", "marginal"):
        return columns - own_column * unit_prob
    return columns


def _unit_weight(own: Tensor, logits_kW: Tensor, positions: Tensor, ids: tuple[int, ...], score: str) -> Tensor:
    if score == "sum_logprob":
        return own.prod()
    if score == "mean_logprob":
        return own.log().mean().exp()
    raw = logits_kW[positions, list(ids)].mean()
    return (raw - logits_kW[0].logsumexp(-1)).exp()  # relative to the columns' normaliser


def dense_divergence(variant: Variant, q: Tensor, p: Tensor) -> Tensor:
    """D(student q, teacher p) over candidates that at least one side holds."""
    kept = (q > 0) | (p > 0)
    q, p = q[kept], p[kept]

    def kl(a: Tensor, b: Tensor) -> Tensor:
        return torch.special.xlogy(a, a / b).sum()

    match variant.divergence:
        case "rkl":
            return kl(q, p)
        case "kl":
            return kl(p, q)
        case "jsd":
            middle = variant.jsd_beta * p + (1 - variant.jsd_beta) * q
            return variant.jsd_beta * kl(p, middle) + (1 - variant.jsd_beta) * kl(q, middle)
        case "skl":
            return kl(p, variant.skew * p + (1 - variant.skew) * q)
        case "srkl":
            return kl(q, variant.skew * q + (1 - variant.skew) * p)
        case "akl":
            forward, reverse = adaptive_weights(q.detach().log().tolist(), p.log().tolist())
            return forward * kl(p, q) + reverse * kl(q, p)
        case "tvd":
            return (q - p).abs().sum() / 2
        case "top1_ce":
            return -p.max() * q[p.argmax()].log()
    raise AssertionError(variant.divergence)


def dense_loss(
    student: Side,
    teacher: Side,
    units: list[Unit],
    student_logits_SV: Tensor,
    teacher_logits_TV: Tensor,
    variant: Variant,
) -> Tensor:
    """Sum over units; differentiable in the student's logits (float64)."""
    shared = shared_candidates(student, teacher)
    total = student_logits_SV.sum() * 0
    for unit in units:
        _, reading = readings(student, teacher, unit, np.empty((0, 0)), teacher_logits_TV.numpy())
        if not is_graded(reading, unit, shared, variant):
            continue
        student_rows = student_logits_SV[unit.student_start : unit.student_start + len(unit.student_ids)]
        teacher_rows = teacher_logits_TV[unit.teacher_start : unit.teacher_start + len(unit.teacher_ids)]
        q = candidate_weights(student, unit.student_ids, student_rows, unit, shared, variant)
        p = candidate_weights(teacher, unit.teacher_ids, teacher_rows, unit, shared, variant)
        total = total + dense_divergence(variant, q / q.sum(), p / p.sum())
    return total
