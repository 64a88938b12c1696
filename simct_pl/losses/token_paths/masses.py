"""Both models' probability of each category of a student token, by sums over whole rows of their logits.

A row of logits is passed over as few times as it can be. Its exponentials are not divided by their sum, what must not
be counted is set to zero in them where it stands, and factors come in later, where there is a number a category.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from simct_pl.losses.token_paths.paths import PathArrays
from simct_pl.losses.token_paths.vocab_links import VocabLinks


@dataclass(frozen=True)
class SideLabels:
    """One side's ids. label_K: int64, the class of each. keep_MK: see VocabLinks.student_keep_MK."""

    label_K: Tensor
    keep_MK: Tensor

    @classmethod
    def of(cls, links: VocabLinks) -> tuple[SideLabels, SideLabels]:
        return (
            cls(torch.from_numpy(links.student_label_K), torch.from_numpy(links.student_keep_MK)),
            cls(torch.from_numpy(links.teacher_label_K), torch.from_numpy(links.teacher_keep_MK)),
        )

    def to(self, device: torch.device) -> SideLabels:
        return SideLabels(self.label_K.to(device), self.keep_MK.to(device))


@dataclass(frozen=True)
class Exponentials:
    """A softmax in its parts, at least fp32. exp_NK: exp(logit - largest logit of the row). sum_N: its sum. logz_N:
    log-sum-exp of the logits. entropy_N: of the softmax, in nats, if it was asked for.
    """

    exp_NK: Tensor
    sum_N: Tensor
    logz_N: Tensor
    entropy_N: Tensor | None = None

    @classmethod
    def of(cls, logits_NK: Tensor, *, entropy: bool = False) -> Exponentials:
        """logits_NK: of any float dtype; they are widened to fp32 at least before anything is summed."""
        largest_N = logits_NK.amax(-1).to(torch.promote_types(logits_NK.dtype, torch.float32))
        below_NK = logits_NK - largest_N[:, None]
        if not entropy:
            exp_NK = below_NK.exp_()
            sum_N = exp_NK.sum(-1)
            return cls(exp_NK, sum_N, largest_N + sum_N.log())
        # An id that a model rules out (-inf) adds nothing.
        exp_NK = below_NK.clamp_min_(torch.finfo(below_NK.dtype).min).exp()
        sum_N = exp_NK.sum(-1)
        log_sum_N = sum_N.log()
        entropy_N = log_sum_N - below_NK.mul_(exp_NK).sum(-1).div_(sum_N)
        return cls(exp_NK, sum_N, largest_N + log_sum_N, entropy_N)


@dataclass(frozen=True)
class MovedIds:
    """place_E: where ids with a label of their own stand in Exponentials.exp_NK, flat. label_E: where their labels
    stand in the masses, flat. exp_E: what stood at place_E, 0 for those that are dropped.
    """

    place_E: Tensor
    label_E: Tensor
    exp_E: Tensor

    @classmethod
    def take(cls, exp_NK: Tensor, paths: PathArrays) -> MovedIds:
        """Out of exp_NK, where zeros are left."""
        flat = exp_NK.view(-1)
        place_E = torch.add(paths.moved_id_E, paths.moved_token_E, alpha=exp_NK.shape[1])
        label_E = paths.moved_label_E.clamp_min(0).add_(paths.moved_token_E, alpha=paths.num_labels)
        exp_E = flat.index_select(0, place_E).mul_(paths.moved_label_E >= 0)
        flat.index_fill_(0, place_E, 0.0)
        return cls(place_E, label_E, exp_E)


@dataclass(frozen=True)
class StudentMasses:
    """mass_NC: of each label, in the scale of Exponentials.exp_NK, where moved and dropped ids are left 0."""

    mass_NC: Tensor
    moved: MovedIds

    @classmethod
    def of(cls, exp_NK: Tensor, paths: PathArrays, label_K: Tensor, keep_MK: Tensor) -> StudentMasses:
        """exp_NK is written to. label_K: the class of each id. keep_MK: see SideLabels."""
        num_rows, width = exp_NK.shape
        num_ids = len(label_K)
        moved = MovedIds.take(exp_NK, paths)
        if width > num_ids:  # a model's rows may outnumber its tokenizer's ids
            exp_NK[:, num_ids:].zero_()
        _drop_kinds(exp_NK, paths.kinds_token_D, keep_MK, paths.kinds_mask_D)
        mass_NC = exp_NK.new_zeros(num_rows, paths.num_labels)
        mass_NC.index_add_(1, label_K, exp_NK[:, :num_ids])
        for row_R, shift_K in paths.shifted_students:
            exp_NK[row_R, :num_ids] *= shift_K >= 0
            mass_NC.index_copy_(0, row_R, _by_shift(exp_NK[row_R, :num_ids], shift_K, paths))
        based_B = paths.based_token_B
        whole_B = mass_NC.index_select(0, based_B).sum(-1)
        mass_NC.index_fill_(0, based_B, 0.0)
        flat = mass_NC.view(-1)
        flat.index_add_(0, paths.base_place_B, whole_B.mul_(paths.base_is_label_B))
        flat.index_add_(0, moved.label_E, moved.exp_E)
        merge_labels(mass_NC, paths)
        return cls(mass_NC, moved)


def logit_gradient(grad_NC: Tensor, exp_NK: Tensor, moved: MovedIds, paths: PathArrays, label_K: Tensor) -> Tensor:
    """Gradient of the student's logits, given that of its masses, which is written to; the rest as in StudentMasses.

    d logit = exp * (g - sum q g), g the gradient of each id's category; the sum is 0, because what is compared does not
    depend on the scale of the masses.
    """
    num_ids, width = len(label_K), exp_NK.shape[1]
    flat = grad_NC.view(-1)
    if len(paths.merged_to_J):
        of_merged_J = flat.index_select(0, paths.merged_to_J).mul_(paths.merged_is_label_J)
        flat.index_copy_(0, paths.merged_from_J, of_merged_J)
    grad_E = flat.index_select(0, moved.label_E).mul_(moved.exp_E)
    of_base_B = flat.index_select(0, paths.base_place_B).mul_(paths.base_is_label_B)
    grad_NC.index_copy_(0, paths.based_token_B, of_base_B[:, None].expand(-1, grad_NC.shape[1]))
    # Ids beyond the tokenizer's have an exponential of 0 by now: any label will do.
    padded_K = label_K if num_ids == width else F.pad(label_K, (0, width - num_ids))
    grad_NK = grad_NC.index_select(1, padded_K)
    for row_R, shift_K in paths.shifted_students:
        grad_NK[row_R, :num_ids] = grad_NC[row_R].index_select(1, shift_K.clamp_min(0))
    grad_NK.mul_(exp_NK)
    grad_NK.view(-1).index_copy_(0, moved.place_E, grad_E)
    return grad_NK


@dataclass(frozen=True)
class TeacherMasses:
    """mass_NC: probability of each category along the teacher's path from each student token's T0. front_N: log of the
    part of it that is the token before the position; it is the same in all but a few categories. logz_X: log-sum-exp of
    each row.
    """

    mass_NC: Tensor
    front_N: Tensor
    logz_X: Tensor

    @classmethod
    def of(cls, logits_XK: Tensor, paths: PathArrays, label_K: Tensor, keep_MK: Tensor) -> TeacherMasses:
        """logits_XK: of any float dtype. label_K: the class of each id. keep_MK: see SideLabels."""
        rows = Exponentials.of(logits_XK)
        step_X, token_P, listed_Q = paths.step_row_P, paths.step_token_P, paths.listed_step_Q
        on_P = logits_XK[step_X, paths.step_id_P] - rows.logz_N[step_X]
        nothing_N = on_P.new_zeros(paths.num_tokens)
        end_N = nothing_N.index_add(0, token_P, on_P)
        reached_P = _reached(on_P, paths.step_first_P).exp_()
        factor_P = reached_P / rows.sum_N[step_X]
        place_Q = torch.add(paths.listed_id_Q, step_X[listed_Q], alpha=logits_XK.shape[1])
        leaves_Q = paths.listed_id_Q != paths.step_id_P[listed_Q]  # what goes on does not leave the path
        mass_Q = rows.exp_NK.view(-1).index_select(0, place_Q).mul_(factor_P[listed_Q]).mul_(leaves_Q)
        left_P = on_P.expm1().mul_(reached_P).index_add_(0, listed_Q, mass_Q).clamp_max_(0).neg_()
        mass_NC = _whole_rows(rows, paths, label_K, keep_MK, factor_P, place_Q)
        flat = mass_NC.view(-1)
        label_place_Q = paths.listed_label_Q.clamp_min(0).add_(paths.step_place_P[listed_Q])
        flat.index_add_(0, label_place_Q, mass_Q.mul_(paths.listed_label_Q >= 0))
        flat.index_add_(0, paths.end_place_V, torch.cat([left_P, end_N.exp()])[paths.end_from_V])
        merge_labels(mass_NC, paths)
        front_N = nothing_N.index_add(0, token_P, on_P * paths.step_is_front_P)
        return cls(mass_NC, front_N, rows.logz_N)


def _reached(on_P: Tensor, first_P: Tensor) -> Tensor:
    """Log-probability of the path's tokens before each step."""
    before_P = on_P.double().cumsum(0).sub_(on_P)
    return (before_P - before_P[first_P]).to(on_P.dtype)


def _whole_rows(
    rows: Exponentials, paths: PathArrays, label_K: Tensor, keep_MK: Tensor, factor_P: Tensor, place_Q: Tensor
) -> Tensor:
    """Masses of the steps at which every id has the label of its class, but for those that are listed or go on.

    place_Q: where listed ids stand in rows.exp_NK, flat.
    """
    exp_XK, whole_F, num_tokens = rows.exp_NK, paths.whole_step_F, paths.num_tokens
    if not len(whole_F):
        return exp_XK.new_zeros(num_tokens, paths.num_labels)
    factor_N = exp_XK.new_zeros(num_tokens).index_copy_(0, paths.whole_token_F, factor_P[whole_F])
    width, listed_Q = exp_XK.shape[1], paths.listed_step_Q
    of_P, of_F = paths.step_row_P, paths.whole_row_F
    if not paths.whole_rows_differ:
        exp_XK, of_P, of_F = exp_XK.index_select(0, paths.own_row_N), paths.step_token_P, paths.whole_token_F
        place_Q = torch.add(paths.listed_id_Q, of_P[listed_Q], alpha=width)
    place_F = torch.add(paths.step_id_P[whole_F], of_F, alpha=width)
    flat = exp_XK.view(-1)
    flat.index_fill_(0, place_F, 0.0)
    # A row may be read by another token's step as well, which lists what it likes: that goes where a zero goes anyway.
    flat.index_fill_(0, torch.where(paths.step_is_whole_P[listed_Q], place_Q, place_F[:1]), 0.0)
    _drop_kinds(exp_XK, of_P[paths.kinds_step_G], keep_MK, paths.kinds_mask_G)
    mass_XC = exp_XK.new_zeros(len(exp_XK), paths.num_labels).index_add_(1, label_K, exp_XK[:, : len(label_K)])
    for place_R, shift_K in paths.shifted_teachers:
        row_R = of_F[place_R]
        mass_XC.index_copy_(0, row_R, _by_shift(exp_XK[row_R, : len(label_K)] * (shift_K >= 0), shift_K, paths))
    own_NC = mass_XC.index_select(0, paths.own_row_N) if paths.whole_rows_differ else mass_XC
    return own_NC.mul_(factor_N[:, None])


def _by_shift(exp_RK: Tensor, shift_K: Tensor, paths: PathArrays) -> Tensor:
    """Sums by the labels of a Shift, [R, num_labels]; what has none is 0 already."""
    return exp_RK.new_zeros(len(exp_RK), paths.num_labels).index_add_(1, shift_K.clamp_min(0), exp_RK)


def _drop_kinds(exp_NK: Tensor, row_D: Tensor, keep_MK: Tensor, mask_D: Tensor) -> None:
    """Set ids that begin with a character of some kinds to 0, in some rows."""
    if len(row_D):
        exp_NK[row_D, : keep_MK.shape[1]] *= keep_MK[mask_D]


def merge_labels(mass_NC: Tensor, paths: PathArrays) -> None:
    """Give the mass of labels that are merged to the label that they are merged with."""
    if not len(paths.merged_from_J):
        return
    flat = mass_NC.view(-1)
    moved_J = flat.index_select(0, paths.merged_from_J)
    flat.index_fill_(0, paths.merged_from_J, 0.0)
    flat.index_add_(0, paths.merged_to_J, moved_J.mul_(paths.merged_is_label_J))
