"""One question a student token: what comes next, given what both models have cut so far.

Within one tokenizer every student token has a whole row of the teacher's to be compared with. Across tokenizers it has
one too, made of the rows along the teacher's own reading of the text (docs/methods.md, "One question a student token").
Both next-token distributions are summed over the same categories, those of UnitRows.paths, and compared.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from typing_extensions import override

from simct_pl.errors import RecipeError
from simct_pl.losses.base import Objective, UnitChunk, UnitLosses
from simct_pl.losses.divergences import DivergenceName, named_divergence
from simct_pl.losses.inputs.logprobs import at_least_fp32
from simct_pl.losses.token_paths.asking import Asker
from simct_pl.losses.token_paths.categories import CLASSES, DROPPED
from simct_pl.losses.token_paths.path_builder import PathBuilder
from simct_pl.losses.token_paths.paths import PathArrays
from simct_pl.losses.token_paths.vocab_links import VocabLinks
from simct_pl.tokenization.pair import TokenizerPair


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


class TokenConditionalLoss(Objective):
    """D(q_student, q_teacher) at every student token of a supervised unit, summed over the unit's tokens.

    Args:
        divergence: rkl | kl | jsd | skl | srkl | akl | tvd | top1_ce.
        jsd_beta: weight of the teacher in `jsd`. skew: interpolation of `skl` and `srkl`.
        floor: added to the teacher's probability of each category, so that one that it rules out has a finite loss.

    Raises:
        RecipeError: for an unknown name or a floor that is not above 0; when called before `prepare`.
    """

    def __init__(
        self, divergence: DivergenceName = "rkl", jsd_beta: float = 0.5, skew: float = 0.1, floor: float = 1e-9
    ) -> None:
        if not 0 < floor < 1e-2:
            raise RecipeError(f"floor is {floor}; expected more than 0 and less than 0.01.")
        self._divergence = named_divergence(divergence, jsd_beta=jsd_beta, skew=skew)
        self._description = {"divergence": divergence, "jsd_beta": jsd_beta, "skew": skew, "floor": floor}
        self.floor = floor
        self._pair: TokenizerPair | None = None
        self._sides: tuple[SideLabels, SideLabels] | None = None

    @override
    def prepare(self, pair: TokenizerPair) -> None:
        if self._pair is not pair:
            self._pair = pair
            self.use(VocabLinks.of_pair(pair))

    def use(self, links: VocabLinks) -> None:
        """Take the links of a pair; `prepare` hands over those of its pair."""
        self.path_builder = PathBuilder(Asker(links))
        self._sides = SideLabels.of(links)

    def __call__(self, chunk: UnitChunk) -> UnitLosses:
        paths, path_logits_XK = chunk.paths, chunk.path_logits_XK
        if self._sides is None or paths is None or path_logits_XK is None:
            raise RecipeError(
                f"{type(self).__name__} has no paths; call prepare(pair) first, and build rows with its path_builder."
            )
        student, teacher = (side.to(path_logits_XK.device) for side in self._sides)
        self._sides = student, teacher
        student_NC = student_masses(at_least_fp32(chunk.student_logits_NK), paths, student)
        with torch.no_grad():
            teacher_NC, front_N = teacher_masses(at_least_fp32(path_logits_XK), paths, teacher)
        student_logq_NC, student_logmass_N = _normalised(student_NC, paths, torch.finfo(student_NC.dtype).tiny)
        teacher_logq_NC, teacher_logmass_N = _normalised(teacher_NC, paths, self.floor)
        loss_N = self._divergence(student_logq_NC, teacher_logq_NC)
        first_U = chunk.rows.student_first_U
        loss_U = loss_N.new_zeros(len(first_U)).index_add(0, chunk.rows.student_unit_N, loss_N)
        supervised_U = torch.ones_like(loss_U, dtype=torch.bool)
        teacher_logmass_N = (teacher_logmass_N - front_N).clamp_max(0.0)
        masses = (logmass_N.detach()[first_U] for logmass_N in (student_logmass_N, teacher_logmass_N))
        return UnitLosses(loss_U, supervised_U, *masses)

    def describe(self) -> dict[str, object]:
        return {"objective": type(self).__name__, **self._description}


def _normalised(mass_NC: Tensor, paths: PathArrays, floor: float) -> tuple[Tensor, Tensor]:
    """(log-probabilities that add up to 1, log of the mass) of each row; floor: added to each entry, of the mass.

    A label that a token does not have is -inf, so that no number depends on what it is computed with.
    """
    tiny = torch.finfo(mass_NC.dtype).tiny
    total_N1 = mass_NC.sum(-1, keepdim=True).clamp_min(tiny)
    log_NC = (mass_NC + floor * total_N1).clamp_min(tiny).log()
    log_NC[:, paths.num_classes :].masked_fill_(paths.unused(), -torch.inf)
    return log_NC - log_NC.logsumexp(-1, keepdim=True), total_N1.log().squeeze(-1)


def student_masses(logits_NK: Tensor, paths: PathArrays, side: SideLabels) -> Tensor:
    """Probability of each category at each student token, [N, num_labels]; what is dropped is left out."""
    masses_NC: Tensor = _StudentMasses.apply(logits_NK, paths, side)
    return masses_NC


class _StudentMasses(torch.autograd.Function):
    """A sum by label of the softmax, with a few ids of each row moved; one column more, for what is dropped."""

    @staticmethod
    def forward(ctx: Any, logits_NK: Tensor, paths: PathArrays, side: SideLabels) -> Tensor:
        label_K = side.label_K
        p_NK = logits_NK.softmax(-1)
        dropped = paths.num_labels
        moved_E = _place(paths.moved_label_E, dropped)
        in_classes_NK = p_NK[:, : len(label_K)].index_put((paths.moved_token_E, paths.moved_id_E), p_NK.new_zeros(()))
        in_classes_NK[paths.kinds_token_D] *= side.keep_MK[paths.kinds_mask_D]
        mass_NX = p_NK.new_zeros(len(p_NK), dropped + 1).index_add_(1, label_K, in_classes_NK)
        for rows, shift_K in paths.shifted_students:
            shifted_RX = mass_NX.new_zeros(len(rows), dropped + 1)
            mass_NX[rows] = shifted_RX.index_add_(1, _place(shift_K, dropped), in_classes_NK[rows])
        based_B = paths.based_token_B
        whole_B = mass_NX.index_select(0, based_B).sum(-1)
        mass_NX.index_fill_(0, based_B, 0.0)
        mass_NX.index_put_((based_B, _place(paths.base_N[based_B], dropped)), whole_B)
        moved_mass_E = p_NK[paths.moved_token_E, paths.moved_id_E]
        mass_NX.index_put_((paths.moved_token_E, moved_E), moved_mass_E, accumulate=True)
        merge_labels(mass_NX, paths)
        ctx.save_for_backward(p_NK, moved_E)
        ctx.paths, ctx.side = paths, side
        return mass_NX[:, :dropped]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_NC: Tensor) -> tuple[Tensor, None, None]:
        """d logits = p * (g - sum p g), g the gradient of each id's category."""
        p_NK, moved_E = ctx.saved_tensors
        paths, side = ctx.paths, ctx.side
        grad_NX = torch.cat([grad_NC, grad_NC.new_zeros(len(grad_NC), 1)], -1)
        merged = paths.merged_token_J
        grad_NX[merged, paths.merged_from_J] = grad_NX[merged, paths.merged_to_J]
        grad_NK = torch.zeros_like(p_NK)
        of_class_NK = grad_NK[:, : len(side.label_K)]
        torch.index_select(grad_NX, 1, side.label_K, out=of_class_NK)
        of_class_NK[paths.kinds_token_D] *= side.keep_MK[paths.kinds_mask_D]
        for rows, shift_K in paths.shifted_students:
            of_class_NK[rows] = grad_NX[rows][:, _place(shift_K, paths.num_labels)]
        based_B = paths.based_token_B
        of_base_B = grad_NX[based_B, _place(paths.base_N[based_B], paths.num_labels)]
        of_class_NK[based_B] = of_base_B[:, None].expand(-1, len(side.label_K))
        grad_NK.index_put_((paths.moved_token_E, paths.moved_id_E), grad_NX[paths.moved_token_E, moved_E])
        total_N1 = torch.linalg.vecdot(p_NK, grad_NK)[:, None]
        return grad_NK.sub_(total_N1).mul_(p_NK), None, None


def teacher_masses(logits_XK: Tensor, paths: PathArrays, side: SideLabels) -> tuple[Tensor, Tensor]:
    """(probability of each category along the teacher's path from each student token's T0, [N, num_labels], log of the
    part of it that is the token before the position, [N]: it is the same in all but a few categories).
    """
    dropped, num_tokens = paths.num_labels, len(paths.base_N)
    logz_X = logits_XK.logsumexp(-1)
    step_X, token_P, logz_P = paths.step_row_P, paths.step_token_P, logz_X[paths.step_row_P]
    on_P = logits_XK[step_X, paths.step_id_P] - logz_P
    end_N = on_P.new_zeros(num_tokens).index_add(0, token_P, on_P)
    reach_P = _reached(on_P, token_P, end_N)
    listed_Q = paths.listed_step_Q
    p_Q = (logits_XK[step_X[listed_Q], paths.listed_id_Q] - logz_P[listed_Q]).exp()
    p_Q = p_Q * (paths.listed_id_Q != paths.step_id_P[listed_Q])  # what goes on does not leave the path
    mass_NX = _whole_rows(logits_XK, paths, side, reach_P - logz_P, num_tokens)
    mass_NX.index_put_((token_P[listed_Q], _place(paths.listed_label_Q, dropped)), p_Q * reach_P[listed_Q].exp(), True)
    left_P = (-torch.expm1(on_P)).index_add(0, listed_Q, -p_Q).clamp_min(0)
    mass_NX.index_put_((token_P, _place(paths.step_base_P, dropped)), left_P * reach_P.exp(), True)
    tokens_N = torch.arange(num_tokens, device=mass_NX.device)
    mass_NX.index_put_((tokens_N, _place(paths.own_N, dropped)), end_N.exp(), True)
    merge_labels(mass_NX, paths)
    is_front_P = (paths.step_base_P == DROPPED) & (paths.base_N[token_P] == CLASSES)
    front_N = torch.zeros_like(end_N).index_add(0, token_P, on_P * is_front_P)
    return mass_NX[:, :dropped], front_N


def _reached(on_P: Tensor, token_P: Tensor, end_N: Tensor) -> Tensor:
    """Log-probability of the path's tokens before each step."""
    before_N = end_N.double().cumsum(0) - end_N
    return (on_P.double().cumsum(0) - on_P - before_N[token_P]).to(on_P.dtype)


def _whole_rows(logits_XK: Tensor, paths: PathArrays, side: SideLabels, shift_P: Tensor, num_tokens: int) -> Tensor:
    """Masses of the steps at which every id has the label of its class, but for those that are listed or go on."""
    label_K = side.label_K
    whole_F, dropped = paths.whole_step_F, paths.num_labels
    logits_FK = logits_XK[:, : len(label_K)].index_select(0, paths.step_row_P[whole_F])
    mass_FK = logits_FK.add_(shift_P[whole_F, None]).exp_()
    # One row more, which takes what other steps list.
    mass_FK = torch.cat([mass_FK, mass_FK.new_zeros(1, mass_FK.shape[1])])
    row_P = torch.full_like(paths.step_row_P, len(whole_F))
    row_P[whole_F] = torch.arange(len(whole_F), device=row_P.device)
    zero = mass_FK.new_zeros(())
    mass_FK.index_put_((row_P, paths.step_id_P), zero)
    mass_FK.index_put_((row_P[paths.listed_step_Q], paths.listed_id_Q), zero)
    mass_FK[row_P[paths.kinds_step_G]] *= side.keep_MK[paths.kinds_mask_G]
    mass_FX = mass_FK.new_zeros(len(whole_F), dropped + 1).index_add_(1, label_K, mass_FK[:-1])
    for rows, shift_K in paths.shifted_teachers:
        shifted_RX = mass_FX.new_zeros(len(rows), dropped + 1)
        mass_FX[rows] = shifted_RX.index_add_(1, _place(shift_K, dropped), mass_FK[rows])
    return mass_FK.new_zeros(num_tokens, dropped + 1).index_copy_(0, paths.step_token_P[whole_F], mass_FX)


def merge_labels(mass_NX: Tensor, paths: PathArrays) -> None:
    """Give the mass of labels that are merged to the label that they are merged with."""
    token_J, from_J = paths.merged_token_J, paths.merged_from_J
    moved_J = mass_NX[token_J, from_J]
    mass_NX.index_put_((token_J, from_J), mass_NX.new_zeros(()))
    mass_NX.index_put_((token_J, paths.merged_to_J), moved_J, accumulate=True)


def _place(labels: Tensor, dropped: int) -> Tensor:
    """Labels as columns; what is no label goes where it is left out."""
    return torch.where(labels < 0, dropped, labels)
