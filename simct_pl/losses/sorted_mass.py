"""Distance of two sets of probabilities whose members have no names in common: both are sorted, ranks are compared."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from simct_pl.errors import RecipeError


def check_top_k(top_k: int | None) -> None:
    """Raise a RecipeError for less than one."""
    if top_k is not None and top_k < 1:
        raise RecipeError(f"top_k is {top_k}; expected at least 1, or null for the whole vocabulary.")


def sorted_l1(student_UK: Tensor, teacher_UJ: Tensor, top_k: int | None) -> Tensor:
    """sum_i |sort(S)_i - sort(T)_i|, the shorter side padded with zeros; [U].

    student_UK, teacher_UJ: masses of K and J members, at least 0. top_k: compare the k largest of each side, and what
    is left of both as one more number. By the triangle inequality that is never more than the whole sum, and short of
    it by at most twice the smaller of the two rests: exact where k leaves nothing to one side.
    """
    student_UR, teacher_UR = (_ranked(mass, top_k) for mass in (student_UK, teacher_UJ))
    width = max(student_UR.shape[-1], teacher_UR.shape[-1])
    student_UR, teacher_UR = (F.pad(mass, (0, width - mass.shape[-1])) for mass in (student_UR, teacher_UR))
    distance_U = (student_UR - teacher_UR).abs().sum(-1)
    if top_k is None:
        return distance_U
    # What the top k leave out of either side, as one more rank.
    left_U = (student_UK.sum(-1) - student_UR.sum(-1)) - (teacher_UJ.sum(-1) - teacher_UR.sum(-1))
    return distance_U + left_U.abs()


def _ranked(mass_UK: Tensor, top_k: int | None) -> Tensor:
    if top_k is None:
        return mass_UK.sort(-1, descending=True).values
    return torch.topk(mass_UK, min(top_k, mass_UK.shape[-1]), dim=-1).values
