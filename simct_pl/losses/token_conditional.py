"""One question a student token: what comes next, given what both models have cut so far.

Within one tokenizer every student token has a whole row of the teacher's to be compared with. Across tokenizers it has
one too, made of the rows along the teacher's own reading of the text (docs/methods.md, "One question a student token").
Both next-token distributions are summed over the same categories, those of UnitRows.paths, and compared.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from typing_extensions import override

from simct_pl.errors import RecipeError
from simct_pl.losses.base import Objective, RowStats, UnitChunk, UnitLosses
from simct_pl.losses.divergences import DivergenceName, named_divergence
from simct_pl.losses.token_paths.asking import Asker
from simct_pl.losses.token_paths.kept import KeptAnswers
from simct_pl.losses.token_paths.masses import (
    Exponentials,
    MovedIds,
    SideLabels,
    StudentMasses,
    TeacherMasses,
    logit_gradient,
)
from simct_pl.losses.token_paths.path_builder import PathBuilder
from simct_pl.losses.token_paths.paths import PathArrays
from simct_pl.losses.token_paths.vocab_links import VocabLinks
from simct_pl.tokenization.pair import TokenizerPair

LEAST = 1e-30  # of the student's probability: what a category has that it rules out


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
            links = VocabLinks.of_pair(pair)
            self.use(links, KeptAnswers.of(links))

    def use(self, links: VocabLinks, kept: KeptAnswers | None = None) -> None:
        """Take the links of a pair, and what is known of it; `prepare` hands over those of its pair."""
        self.path_builder = PathBuilder(Asker(links), kept)
        self.use_labels(*SideLabels.of(links))

    def use_labels(self, student: SideLabels, teacher: SideLabels) -> None:
        """Take the classes of both sides' ids alone, for paths that somebody else makes."""
        self._sides = student, teacher

    def __call__(self, chunk: UnitChunk) -> UnitLosses:
        paths, path_logits_XK, rows_M = chunk.paths, chunk.path_logits_XK, chunk.path_rows_M
        if self._sides is None or paths is None or path_logits_XK is None or rows_M is None:
            raise RecipeError(
                f"{type(self).__name__} has no paths; call prepare(pair) first, and build rows with its path_builder."
            )
        ours, theirs = (side.to(path_logits_XK.device) for side in self._sides)
        self._sides = ours, theirs
        logits_NK = chunk.student_logits_NK
        wants_gradient = torch.is_grad_enabled() and logits_NK.requires_grad
        with torch.no_grad():
            # The teacher's row goes when its masses are there, before the student's comes.
            teacher = TeacherMasses.of(path_logits_XK, paths, theirs.label_K, theirs.keep_MK)
            floored = _log_floored(teacher.mass_NC, paths.num_labels_N, self.floor)
            whole = Exponentials.of(logits_NK, entropy=True)
            student = StudentMasses.of(whole.exp_NK, paths, ours.label_K, ours.keep_MK)
            total_N = student.mass_NC.sum(-1)
            compare = _reverse_kl if self._description["divergence"] == "rkl" else self._compare
            sides = _Sides(student.mass_NC, total_N, floored.log_NC, floored.log_total_N, paths.num_labels_N)
            compared = compare(sides, paths, wants_gradient)
        loss_N: Tensor = _Compared.apply(logits_NK, compared, whole.exp_NK, student, paths, ours.label_K)
        first_U = chunk.rows.student_first_U
        loss_U = loss_N.new_zeros(len(first_U)).index_add_(0, chunk.rows.student_unit_N, loss_N)
        tiny = torch.finfo(total_N.dtype).tiny
        masses = (
            (total_N / whole.sum_N).clamp_min_(tiny).log_()[first_U],
            (floored.logmass_N - teacher.front_N).clamp_max_(0.0)[first_U],
        )
        assert whole.entropy_N is not None
        row_stats = RowStats(whole.logz_N, whole.entropy_N, teacher.logz_X[rows_M])
        return UnitLosses(loss_U, torch.ones_like(loss_U, dtype=torch.bool), *masses, row_stats)

    def _compare(self, sides: _Sides, paths: PathArrays, wants_gradient: bool) -> _Comparison:
        """Any divergence of log-probabilities. A label that a token does not have is -inf, so that no number depends on
        what it is computed with.
        """
        logq_NC = sides.log_masses().sub_(sides.smoothed_N.log()[:, None])
        logt_NC = sides.logt_NC.sub_(sides.logt_total_N[:, None])
        for log_NC in (logq_NC, logt_NC):
            log_NC[:, paths.num_classes :].masked_fill_(paths.unused(), -torch.inf)
        if not wants_gradient:
            return _Comparison(self._divergence(logq_NC, logt_NC))
        with torch.enable_grad():
            loss_N = self._divergence(logq_NC.requires_grad_(), logt_NC)
            (grad_NC,) = torch.autograd.grad(loss_N.sum(), logq_NC)
        by_mass_NC = grad_NC.div_(sides.mass_NC + sides.added_N[:, None])
        by_mass_NC.sub_((torch.linalg.vecdot(by_mass_NC, sides.mass_NC) / sides.smoothed_N)[:, None])
        return _Comparison(loss_N.detach(), by_mass_NC, torch.ones_like(loss_N))

    def describe(self) -> dict[str, object]:
        return {"objective": type(self).__name__, **self._description}


@dataclass(frozen=True)
class _Sides:
    """mass_NC: the student's, in any scale; total_N: its sum. logt_NC, less logt_total_N: the teacher's
    log-probabilities. num_labels_N: of each token.
    """

    mass_NC: Tensor
    total_N: Tensor
    logt_NC: Tensor
    logt_total_N: Tensor
    num_labels_N: Tensor

    @cached_property
    def added_N(self) -> Tensor:
        """What is added to each of the student's masses, so that none has the log of 0."""
        return (LEAST * self.total_N).clamp_min(torch.finfo(self.total_N.dtype).tiny)

    @cached_property
    def smoothed_N(self) -> Tensor:
        """The total with what is added."""
        return self.total_N + self.num_labels_N * self.added_N

    def log_masses(self) -> Tensor:
        return (self.mass_NC + self.added_N[:, None]).log_()


@dataclass(frozen=True)
class _Comparison:
    """loss_N, and its gradient by the student's masses: grad_NC, each row times factor_N."""

    loss_N: Tensor
    grad_NC: Tensor | None = None
    factor_N: Tensor | None = None


def _reverse_kl(sides: _Sides, paths: PathArrays, wants_gradient: bool) -> _Comparison:
    """What `reverse_kl` gives, in fewer passes; the student's masses are written over.

    With q = mass / total, KL(q || t) = sum q (log mass - log t) - log total, and its derivative by a mass is
    (log q - log t - KL) / total.
    """
    smoothed_N = sides.smoothed_N
    gap_NC = sides.log_masses().sub_(sides.logt_NC)
    mean_N = sides.mass_NC.mul_(gap_NC).sum(-1).div_(smoothed_N)
    loss_N = mean_N + (sides.total_N / smoothed_N) * (sides.logt_total_N - smoothed_N.log())
    if not wants_gradient:
        return _Comparison(loss_N)
    return _Comparison(loss_N, gap_NC.sub_(mean_N[:, None]), smoothed_N.reciprocal())


@dataclass(frozen=True)
class _Floored:
    """Logs of masses with a share of their sum added to each, log of what these add up to, log of the sum before."""

    log_NC: Tensor
    log_total_N: Tensor
    logmass_N: Tensor


def _log_floored(mass_NC: Tensor, num_labels_N: Tensor, floor: float) -> _Floored:
    """mass_NC is written to. floor: the share."""
    tiny = torch.finfo(mass_NC.dtype).tiny
    total_N = mass_NC.sum(-1)
    added_N = (floor * total_N).clamp_min_(tiny)
    log_NC = mass_NC.add_(added_N[:, None]).log_()
    log_total_N = torch.addcmul(total_N, num_labels_N, added_N).log_()
    return _Floored(log_NC, log_total_N, total_N.clamp_min(tiny).log_())


class _Compared(torch.autograd.Function):
    """Losses whose gradient by the student's masses has been found with them."""

    @staticmethod
    def forward(
        ctx: Any,
        logits_NK: Tensor,
        compared: _Comparison,
        exp_NK: Tensor,
        student: StudentMasses,
        paths: PathArrays,
        label_K: Tensor,
    ) -> Tensor:
        moved = student.moved
        ctx.save_for_backward(compared.grad_NC, compared.factor_N, exp_NK, moved.place_E, moved.label_E, moved.exp_E)
        ctx.paths, ctx.label_K, ctx.dtype = paths, label_K, logits_NK.dtype
        return compared.loss_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_N: Tensor) -> tuple[Tensor | None, ...]:
        grad_NC, factor_N, exp_NK, *moved = ctx.saved_tensors
        by_mass_NC = grad_NC * (factor_N * grad_N)[:, None]
        grad_NK = logit_gradient(by_mass_NC, exp_NK, MovedIds(*moved), ctx.paths, ctx.label_K)
        del by_mass_NC
        return grad_NK.to(ctx.dtype), None, None, None, None, None
