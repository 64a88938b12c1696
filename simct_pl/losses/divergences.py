"""Divergences between two candidate distributions: log-probabilities [U, C] of both sides in, one number a row out.

Gradients reach whatever requires them (the student; callers detach the teacher). A candidate that is -inf on BOTH
sides is masked: it contributes neither value nor gradient. Sources: reverse/forward KL and JSD as in generalised
knowledge distillation (arXiv 2306.13649), skew KL (arXiv 2402.03898), adaptive KL (arXiv 2404.02657).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from simct_pl.errors import RecipeError, require_choice

Divergence = Callable[[Tensor, Tensor], Tensor]
DivergenceName = Literal["rkl", "kl", "jsd", "skl", "srkl", "akl", "tvd", "top1_ce"]
ADAPTIVE_HEAD_MASS = 0.5


def _expected_gap(logp_UC: Tensor, other_UC: Tensor, weight_logp_UC: Tensor) -> Tensor:
    """sum_c exp(weight) * (logp - other), in which a candidate of weight zero counts zero, whatever its gap."""
    masked_UC = torch.isneginf(weight_logp_UC)
    gap_UC = logp_UC.masked_fill(masked_UC, 0.0) - other_UC.masked_fill(masked_UC, 0.0)
    return (weight_logp_UC.exp() * gap_UC).sum(-1)


def _mixture(a_logp_UC: Tensor, b_logp_UC: Tensor, weight_a: float) -> Tensor:
    """log(weight_a * A + (1 - weight_a) * B), -inf where both are; logaddexp of two -inf would have a NaN gradient."""
    masked_UC = torch.isneginf(a_logp_UC) & torch.isneginf(b_logp_UC)
    mixed_UC = torch.logaddexp(
        a_logp_UC.masked_fill(masked_UC, 0.0) + math.log(weight_a),
        b_logp_UC.masked_fill(masked_UC, 0.0) + math.log1p(-weight_a),
    )
    return mixed_UC.masked_fill(masked_UC, -math.inf)


class _KullbackLeibler(torch.autograd.Function):
    """KL(P || Q) of log-probabilities. What `_expected_gap(P, Q, P)` gives, in a third of the passes over memory."""

    @staticmethod
    def forward(ctx: Any, p_logp_UC: Tensor, q_logp_UC: Tensor) -> Tensor:
        # -inf minus -inf is NaN: a candidate that P gives nothing counts nothing, whatever Q gives it.
        gap_UC = (p_logp_UC - q_logp_UC).masked_fill_(torch.isneginf(p_logp_UC), 0.0)
        p_UC = p_logp_UC.exp()
        divergence_U = torch.linalg.vecdot(p_UC, gap_UC)
        to_p, to_q = ctx.needs_input_grad
        # d / d log p = p (gap + 1), and d / d log q = -p.
        ctx.save_for_backward(gap_UC.add_(1.0).mul_(p_UC) if to_p else None, p_UC.neg() if to_q else None)
        return divergence_U

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_U: Tensor) -> tuple[Tensor | None, ...]:
        return tuple(
            None if gradient_UC is None else grad_U[:, None] * gradient_UC for gradient_UC in ctx.saved_tensors
        )


def reverse_kl(student_logq_UC: Tensor, teacher_logq_UC: Tensor) -> Tensor:
    """KL(student || teacher), [U]."""
    divergence_U: Tensor = _KullbackLeibler.apply(student_logq_UC, teacher_logq_UC)
    return divergence_U


def forward_kl(student_logq_UC: Tensor, teacher_logq_UC: Tensor) -> Tensor:
    """KL(teacher || student), [U]."""
    return reverse_kl(teacher_logq_UC, student_logq_UC)


def jensen_shannon(student_logq_UC: Tensor, teacher_logq_UC: Tensor, beta: float = 0.5) -> Tensor:
    """beta * KL(T || M) + (1 - beta) * KL(S || M) with M = beta * T + (1 - beta) * S and 0 < beta < 1, [U]."""
    mixture_UC = _mixture(teacher_logq_UC, student_logq_UC, beta)
    to_teacher_U = _expected_gap(teacher_logq_UC, mixture_UC, teacher_logq_UC)
    to_student_U = _expected_gap(student_logq_UC, mixture_UC, student_logq_UC)
    return beta * to_teacher_U + (1 - beta) * to_student_U


def skew_kl(student_logq_UC: Tensor, teacher_logq_UC: Tensor, skew: float = 0.1) -> Tensor:
    """KL(T || skew * T + (1 - skew) * S) with 0 < skew < 1, [U]."""
    return _expected_gap(teacher_logq_UC, _mixture(teacher_logq_UC, student_logq_UC, skew), teacher_logq_UC)


def skew_reverse_kl(student_logq_UC: Tensor, teacher_logq_UC: Tensor, skew: float = 0.1) -> Tensor:
    """KL(S || skew * S + (1 - skew) * T) with 0 < skew < 1, [U]."""
    return _expected_gap(student_logq_UC, _mixture(student_logq_UC, teacher_logq_UC, skew), student_logq_UC)


def adaptive_kl(student_logq_UC: Tensor, teacher_logq_UC: Tensor) -> Tensor:
    """Forward and reverse KL weighted by where the two differ (arXiv 2404.02657), [U].

    The head is the smallest set of the teacher's most likely candidates with at least half of its mass. Forward KL gets
    the share of the L1 gap found in the head, reverse KL the share in the tail; the weights carry no gradient.
    """
    with torch.no_grad():
        teacher_UC, order_UC = teacher_logq_UC.exp().sort(dim=-1, descending=True, stable=True)
        gap_UC = (teacher_UC - student_logq_UC.exp().gather(-1, order_UC)).abs()
        # The mass in front of a candidate decides, so the one that crosses the half is in the head.
        in_head_UC = teacher_UC.cumsum(-1) - teacher_UC < ADAPTIVE_HEAD_MASS
        head_U = (gap_UC * in_head_UC).sum(-1)
        weight_U = head_U / gap_UC.sum(-1).clamp_min(torch.finfo(gap_UC.dtype).tiny)
    forward_U = forward_kl(student_logq_UC, teacher_logq_UC)
    return weight_U * forward_U + (1 - weight_U) * reverse_kl(student_logq_UC, teacher_logq_UC)


def total_variation(student_logq_UC: Tensor, teacher_logq_UC: Tensor) -> Tensor:
    """Half of the L1 distance, in [0, 1], [U]."""
    return 0.5 * (student_logq_UC.exp() - teacher_logq_UC.exp()).abs().sum(-1)


def top1_cross_entropy(student_logq_UC: Tensor, teacher_logq_UC: Tensor) -> Tensor:
    """Cross-entropy cut to the teacher's favourite candidate w, -q_T(w) log q_S(w) as in the released code, [U].

    Not a divergence: it is > 0 at S = T.
    """
    top_logq_U1, favourite_U1 = teacher_logq_UC.max(-1, keepdim=True)
    return -(top_logq_U1.exp() * student_logq_UC.gather(-1, favourite_U1)).squeeze(-1)


def named_divergence(name: DivergenceName, *, jsd_beta: float = 0.5, skew: float = 0.1) -> Divergence:
    """The divergence a recipe names.

    Raises:
        RecipeError: if the name is unknown, or jsd_beta or skew is not strictly between 0 and 1.
    """
    require_choice("divergence", name, get_args(DivergenceName))
    for label, value in (("jsd_beta", jsd_beta), ("skew", skew)):
        if not 0.0 < value < 1.0:
            raise RecipeError(f"{label} is {value}; expected a number strictly between 0 and 1.")
    table: dict[str, Divergence] = {
        "rkl": reverse_kl,
        "kl": forward_kl,
        "jsd": partial(jensen_shannon, beta=jsd_beta),
        "skl": partial(skew_kl, skew=skew),
        "srkl": partial(skew_reverse_kl, skew=skew),
        "akl": adaptive_kl,
        "tvd": total_variation,
        "top1_ce": top1_cross_entropy,
    }
    return table[name]
