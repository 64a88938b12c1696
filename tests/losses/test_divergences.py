"""Each divergence: its value, zero at equality, never negative, and safe where both sides exclude a candidate."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from simct_pl.losses import divergences as project
from tests.reference.divergences import divergence

BY_NAME: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "rkl": project.reverse_kl,
    "kl": project.forward_kl,
    "jsd": partial(project.jensen_shannon, beta=0.3),
    "skl": partial(project.skew_kl, skew=0.2),
    "srkl": partial(project.skew_reverse_kl, skew=0.2),
    "akl": project.adaptive_kl,
    "tvd": project.total_variation,
    "top1_ce": project.top1_cross_entropy,
}
# Cross-entropy with the teacher's likeliest candidate is no divergence: at equality it is p·log(1/p), not 0.
TRUE_DIVERGENCES = sorted(set(BY_NAME) - {"top1_ce"})

every_name = pytest.mark.parametrize("name", sorted(BY_NAME))
every_true_divergence = pytest.mark.parametrize("name", TRUE_DIVERGENCES)
logits = st.lists(
    st.floats(-30, 30, allow_nan=False, width=32).filter(lambda value: value == 0 or abs(value) > 1e-6),
    min_size=2,
    max_size=8,
)
pairs = st.integers(2, 8).flatmap(
    lambda size: st.tuples(*[st.lists(st.floats(-30, 30, width=32), min_size=size, max_size=size)] * 2)
)


def random_logq(seed: int, num_rows: int = 5, num_candidates: int = 7) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (
        (torch.randn(num_rows, num_candidates, generator=generator, dtype=torch.float64) * 2).log_softmax(-1)
        for _ in range(2)
    )
    return student, teacher


@every_name
def test_equals_the_reference_row_by_row(name: str) -> None:
    student, teacher = random_logq(0)
    values_U = BY_NAME[name](student, teacher)
    assert values_U.shape == (5,)
    rows = zip(student.tolist(), teacher.tolist(), strict=True)
    expected = [divergence(name, *row, jsd_beta=0.3, skew=0.2) for row in rows]
    np.testing.assert_allclose(values_U.numpy(), expected, rtol=1e-9)


@every_true_divergence
@given(values=logits)
@settings(max_examples=50)
def test_is_zero_at_equality(name: str, values: list[float]) -> None:
    logq = torch.tensor([values], dtype=torch.float64).log_softmax(-1)
    assert float(BY_NAME[name](logq, logq.clone())) == pytest.approx(0, abs=1e-12)


@every_true_divergence
@given(pair=pairs)
@settings(max_examples=50)
def test_is_never_negative(name: str, pair: tuple[list[float], list[float]]) -> None:
    student, teacher = (torch.tensor([values], dtype=torch.float64).log_softmax(-1) for values in pair)
    assert float(BY_NAME[name](student, teacher)) >= -1e-12


@every_name
def test_gradient_at_equality_is_finite(name: str) -> None:
    logq, _ = random_logq(1)
    student = logq.clone().requires_grad_()
    BY_NAME[name](student, logq).sum().backward()
    assert torch.isfinite(student.grad).all()


@every_name
def test_a_candidate_that_both_sides_exclude_adds_nothing(name: str) -> None:
    """-inf on both sides: the value of the row without it, and no NaN on the way back to the scores."""
    generator = torch.Generator().manual_seed(2)
    student, teacher = (torch.randn(4, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    masked = torch.zeros(4, 6, dtype=torch.bool)
    masked[0, 0] = masked[1, 2] = masked[1, 5] = masked[3, 1:] = True
    scores = student.clone().requires_grad_()
    logq = scores.masked_fill(masked, -torch.inf).log_softmax(-1)
    values_U = BY_NAME[name](logq, teacher.masked_fill(masked, -torch.inf).log_softmax(-1))
    values_U.sum().backward()
    assert torch.isfinite(scores.grad).all()
    assert not scores.grad[masked].any()
    for row in range(4):
        kept = ~masked[row]
        alone = [logits_C[row][kept].log_softmax(-1).tolist() for logits_C in (student, teacher)]
        reference = divergence(name, *alone, jsd_beta=0.3, skew=0.2)
        assert float(values_U[row].detach()) == pytest.approx(reference, rel=1e-9, abs=1e-12)


def test_swapping_sides_swaps_the_direction() -> None:
    student, teacher = random_logq(3)
    torch.testing.assert_close(project.reverse_kl(student, teacher), project.forward_kl(teacher, student))
    torch.testing.assert_close(project.total_variation(student, teacher), project.total_variation(teacher, student))
    torch.testing.assert_close(
        project.jensen_shannon(student, teacher, beta=0.2), project.jensen_shannon(teacher, student, beta=0.8)
    )
    torch.testing.assert_close(
        project.skew_kl(student, teacher, skew=0.2), project.skew_reverse_kl(teacher, student, skew=0.2)
    )


def test_adaptive_weights_are_constants_for_the_gradient() -> None:
    """arXiv 2404.02657: forward KL weighted by the gap on the teacher's head, reverse KL by the gap on its tail."""
    student, teacher = random_logq(4, num_rows=1)
    leaf = student.clone().requires_grad_()
    project.adaptive_kl(leaf, teacher).sum().backward()
    q, p = student.exp()[0], teacher.exp()[0]
    order = p.argsort(descending=True)
    before = p[order].cumsum(0) - p[order]
    head = order[before < 0.5]
    weight = float((q - p).abs()[head].sum() / (q - p).abs().sum())
    other = student.clone().requires_grad_()
    mixed = weight * project.forward_kl(other, teacher) + (1 - weight) * project.reverse_kl(other, teacher)
    mixed.sum().backward()
    torch.testing.assert_close(leaf.grad, other.grad)


def test_a_candidate_of_probability_zero_on_one_side_costs_what_it_should() -> None:
    """0 * log(0 / q) = 0 in value and gradient; p * log(p / 0) is infinite."""
    student = torch.tensor([[0.0, -torch.inf]], requires_grad=True)
    teacher = torch.tensor([[0.5, 0.5]]).log()
    loss = project.reverse_kl(student, teacher)
    loss.sum().backward()
    assert loss.item() == pytest.approx(float(np.log(2)))
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()
    assert project.forward_kl(student, teacher).isinf().all()
