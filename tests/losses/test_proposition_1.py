"""Proposition 1 (arXiv 2605.07711): coarser units lose exactly the divergence inside them, and never gain."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from simct_pl.losses.divergences import reverse_kl

labels = st.lists(st.integers(0, 3), min_size=2, max_size=12)


def random_logq(seed: int, *shape: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (torch.randn(shape, generator=generator, dtype=torch.float64) * 2 for _ in range(2))
    return student.flatten().log_softmax(0).view(shape), teacher.flatten().log_softmax(0).view(shape)


@given(seed=st.integers(0, 10_000), blocks=labels)
@settings(max_examples=60)
def test_minimal_is_coarse_plus_what_lies_inside_the_blocks(seed: int, blocks: list[int]) -> None:
    """KL(min) = KL(C) + sum over blocks c of q_S(c) · KL(q_S(·|c) ‖ q_T(·|c)), for any grouping of the candidates."""
    student, teacher = random_logq(seed, len(blocks))
    groups = [[i for i, block in enumerate(blocks) if block == label] for label in sorted(set(blocks))]
    coarse_student, coarse_teacher = (
        torch.stack([logq[group].logsumexp(0) for group in groups]) for logq in (student, teacher)
    )
    inside = sum(
        float(coarse_student[c].exp())
        * float(reverse_kl(student[group][None] - coarse_student[c], teacher[group][None] - coarse_teacher[c]))
        for c, group in enumerate(groups)
    )
    minimal = float(reverse_kl(student[None], teacher[None]))
    coarse = float(reverse_kl(coarse_student[None], coarse_teacher[None]))
    assert minimal == pytest.approx(coarse + inside, rel=1e-6, abs=1e-9)
    assert minimal >= coarse - 1e-9


@given(seed=st.integers(0, 10_000))
@settings(max_examples=40)
def test_two_units_graded_one_by_one_equal_the_pair_graded_whole(seed: int) -> None:
    """The chain rule that lets one row a unit stand for the whole text: KL(u, v) = KL(u) + E_u KL(v | u)."""
    student, teacher = random_logq(seed, 4, 5)
    first = [logq.logsumexp(1) for logq in (student, teacher)]
    following = reverse_kl(student - first[0][:, None], teacher - first[1][:, None])
    stepwise = float(reverse_kl(first[0][None], first[1][None])) + float((first[0].exp() * following).sum())
    assert stepwise == pytest.approx(float(reverse_kl(student.view(1, -1), teacher.view(1, -1))), rel=1e-6)
