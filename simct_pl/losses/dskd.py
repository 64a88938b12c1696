"""DSKD, dual-space distillation (arXiv 2406.17328; `eta` and the start of the projectors: arXiv 2504.11426).

Two trained projectors carry each model's last hidden states into the other's space, where the other's head reads them:

    student's space   CE(t2s, y) + [argmax t2s = y] · D(student, t2s)     t2s = head_S(translated teacher state)
    teacher's space   D(s2t, teacher)                                     s2t = head_T(translated student state)

The first term trains only the projector: no gradient reaches a head through a translated state, nor `t2s` in the second
term. `y` is what a translated teacher should say. DSKDEta and DSKDCma differ in which states belong together, and in y.

The papers average each term over its own tokens and add a cross-entropy on the data; here all terms are sums over units
(divided by the student's response tokens, as for every objective), and cross-entropy is an objective of its own.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from typing_extensions import override

from simct_pl.errors import RecipeError
from simct_pl.losses.base import UnitChunk, UnitLosses
from simct_pl.losses.divergences import DivergenceName, named_divergence
from simct_pl.losses.dual_space import DualSpaceChunk, DualSpaceObjective, PairStates, SideStates
from simct_pl.losses.inputs.logprobs import at_least_fp32
from simct_pl.losses.projectors import AttentionProjectors, Projectors, project
from simct_pl.tokenization.pair import TokenizerPair


class _DSKDLoss(DualSpaceObjective):
    """The two spaces' losses, which both variants share.

    Args:
        divergence: D, of both spaces. jsd_beta, skew: see SimCTLoss.
        projector_lr: peak learning rate of the projectors.

    Raises:
        RecipeError: for an unknown divergence or a number outside its range.
    """

    def __init__(
        self,
        divergence: DivergenceName = "kl",
        jsd_beta: float = 0.5,
        skew: float = 0.1,
        projector_lr: float = 1e-3,
    ) -> None:
        if projector_lr <= 0:
            raise RecipeError(f"projector_lr is {projector_lr}; expected more than 0.")
        self._divergence = named_divergence(divergence, jsd_beta=jsd_beta, skew=skew)
        self.projector_lr = projector_lr
        self._description = {
            "divergence": divergence,
            "jsd_beta": jsd_beta,
            "skew": skew,
            "projector_lr": projector_lr,
        }

    @abstractmethod
    def labels(self, units: UnitChunk) -> tuple[Tensor, Tensor]:
        """y of each student row, int64 [N] (any id where not supervised), and which units are supervised, bool [U]."""

    def __call__(self, chunk: DualSpaceChunk) -> UnitLosses:
        units = chunk.units
        label_N, graded_U = self.labels(units)
        # The student's space. The guide, CE(t2s, y), trains the projector; `detach` below keeps D from training it too.
        in_student_logp_NK = at_least_fp32(chunk.in_student_NK).log_softmax(-1)
        student_logp_NK = at_least_fp32(units.student_logits_NK).log_softmax(-1)
        guide_N = -in_student_logp_NK.gather(-1, label_N[:, None]).squeeze(-1)
        # Where t2s does not say y, its translation is not yet worth learning from.
        agrees_N = in_student_logp_NK.detach().argmax(-1) == label_N
        student_N = self._divergence(student_logp_NK, in_student_logp_NK.detach()).masked_fill(~agrees_N, 0.0)
        # The teacher's space: its head reads the translated student, and the gradient goes on into the student's
        # states.
        teacher_M = self._divergence(
            at_least_fp32(chunk.in_teacher_MK).log_softmax(-1),
            at_least_fp32(units.teacher_logits_MK).detach().log_softmax(-1),
        )
        # The first space has a loss for each student row, the second for each teacher row. They meet at the units.
        loss_U = units.student.sum_by_unit(guide_N + student_N) + units.teacher.sum_by_unit(teacher_M)
        return UnitLosses.over_everything(loss_U.masked_fill(~graded_U, 0.0), graded_U)

    @override
    def describe(self) -> dict[str, object]:
        return {"objective": type(self).__name__, **self._description}


class DSKDEta(_DSKDLoss):
    """Exact token alignment: the states at 1:1 units of a shared token belong together, and only they are supervised.

    y is the teacher's favourite token, in the student's vocabulary; where the student does not have it, the unit has no
    loss. The paper matches tokens by their strings, here they have equal bytes, and stop is stop. Its threshold on the
    share of agreeing tokens, above which all are supervised in the student's space, is left out: it depends on the
    batch.

    Args:
        divergence, jsd_beta, skew, projector_lr: see the base class.
    """

    @override
    def build_projectors(self, student: PreTrainedModel, teacher: PreTrainedModel, pair: TokenizerPair) -> nn.Module:
        return Projectors(student, teacher, pair.shared_vocab)

    @override
    def translate(self, projectors: nn.Module, states: PairStates) -> tuple[Tensor, Tensor]:
        assert isinstance(projectors, Projectors)
        rows, student_NH, teacher_MH = states.rows, states.student.hidden_NH, states.teacher.hidden_NH
        # Units of one token a side, so their first rows are all their rows.
        matched_U = rows.one_to_one_U & (rows.column_U >= 0)
        student_row_P = rows.student_rows_N[rows.student_first_U[matched_U]].to(student_NH.device)
        teacher_row_P = rows.teacher_rows_M[rows.teacher_first_U[matched_U]].to(student_NH.device)
        in_student_PH = project(projectors.to_student, teacher_MH.index_select(0, teacher_row_P))
        in_teacher_PH = project(projectors.to_teacher, student_NH.index_select(0, student_row_P))
        # All other rows stay zero: nothing is translated for them, and `labels` leaves their units out.
        return (
            _scatter_rows(in_student_PH, student_row_P, len(student_NH)),
            _scatter_rows(in_teacher_PH, teacher_row_P, len(teacher_MH)),
        )

    @override
    def labels(self, units: UnitChunk) -> tuple[Tensor, Tensor]:
        rows, tables = units.rows, units.tables
        favourite_U = units.teacher_logits_MK.detach().index_select(0, rows.teacher_first_U).argmax(-1)
        # Teacher's id → column, any stop → the stop column, and from there to the student's id. An id without a column
        # is looked up as column 0, and masked at the end.
        column_K = favourite_U.new_full(units.teacher_logits_MK.shape[-1:], -1)
        column_K[tables.teacher.ids_V] = torch.arange(len(tables.teacher.ids_V), device=column_K.device)
        stops = tables.teacher.stops
        column_K[stops.ids_E] = stops.columns_P[stops.group_E]
        column_U = column_K[favourite_U]
        label_U = tables.student.ids_V[column_U.clamp_min(0)]
        return label_U[rows.student_unit_N], rows.one_to_one_U & (rows.column_U >= 0) & (column_U >= 0)


class DSKDCma(_DSKDLoss):
    """Cross-model attention: each row attends to all rows of the other model's reading of the response.

    With e the input embeddings of the token that a row has read and of the one that it predicts, and x̂ = x / std(x):

        query (student) = P_q [e_read; e_next],   key (teacher) = [ê_read; ê_next],   weights = softmax(query key / √2H)
        t2s: weights over P_t2s(ĥ + ê_next) of the teacher;   s2t: the transposed weights over P_s2t(h) of the student

    y is the token that stands in the response: t2s may see it, in ê_next and in later teacher states. So on the
    student's own responses the student's space teaches what the student has said already, and the method was meant for
    the teacher's or the data's (`callbacks.TeacherRollout`). All rows attend; those of units are supervised.

    The paper leaves std to the batch; here it is one number for the teacher's embeddings and one a response for its
    states, so that the loss does not depend on how a batch is cut. The paper starts P_q at random; here it starts with
    the least-squares map of the student's embeddings to the teacher's, for the tokens that both have.

    Args:
        divergence, jsd_beta, skew, projector_lr: see the base class.
    """

    @override
    def build_projectors(self, student: PreTrainedModel, teacher: PreTrainedModel, pair: TokenizerPair) -> nn.Module:
        return AttentionProjectors(student, teacher, pair.shared_vocab)

    @override
    def translate(self, projectors: nn.Module, states: PairStates) -> tuple[Tensor, Tensor]:
        assert isinstance(projectors, AttentionProjectors)
        student, teacher = states.student, states.teacher
        # Projections are made of all rows at once; attention runs within a response, so they are split there.
        key_MH, value_MH = _keys_and_values(teacher, projectors.teacher_std)
        query_NH = project(projectors.query, torch.cat([student.embedded(0), student.embedded(1)], -1))
        value_MH = project(projectors.to_student, value_MH)
        back_NH = project(projectors.to_teacher, student.hidden_NH)
        key_MH = key_MH.to(query_NH.dtype)
        split_N, split_M = student.num_rows, teacher.num_rows
        per_response = list(
            zip(
                *(rows.split(split_N) for rows in (query_NH, back_NH)),
                *(rows.split(split_M) for rows in (key_MH, value_MH)),
                strict=True,
            )
        )
        # Student rows ask the teacher's. The way back uses the transposed scores, so here query and key change places.
        in_student = [_attend(query, key, value) for query, _, key, value in per_response]
        in_teacher = [_attend(key, query, back) for query, back, key, _ in per_response]
        # The empty part gives the result its width and dtype where there is no response.
        return torch.cat([value_MH[:0], *in_student]), torch.cat([back_NH[:0], *in_teacher])

    @override
    def labels(self, units: UnitChunk) -> tuple[Tensor, Tensor]:
        return units.rows.student_ids_N, torch.ones_like(units.rows.one_to_one_U)


def _scatter_rows(rows_PH: Tensor, place_P: Tensor, num_rows: int) -> Tensor:
    """Rows at their places in a matrix of zeros."""
    return rows_PH.new_zeros(num_rows, rows_PH.shape[1]).index_copy(0, place_P, rows_PH)


def _keys_and_values(teacher: SideStates, std: Tensor) -> tuple[Tensor, Tensor]:
    """[ê_read; ê_next] and ĥ + ê_next of the teacher, at least fp32."""
    read_MH, next_MH = (at_least_fp32(teacher.embedded(shift)) / std for shift in (0, 1))
    # Each response by its own deviation, so that it does not matter which others are in the batch.
    hidden_MH = at_least_fp32(teacher.hidden_NH)
    parts = [rows / rows.std() if len(rows) else rows for rows in hidden_MH.split(teacher.num_rows)]
    return torch.cat([read_MH, next_MH], -1), torch.cat([hidden_MH[:0], *parts]) + next_MH


def _attend(query_NH: Tensor, key_MH: Tensor, value_MG: Tensor) -> Tensor:
    """softmax(query keyᵀ / √H) value, [N, G]; zeros where there is nothing to attend to."""
    if not len(key_MH) or not len(query_NH):
        return value_MG.new_zeros(len(query_NH), value_MG.shape[1])
    found: Tensor = F.scaled_dot_product_attention(query_NH[None, None], key_MH[None, None], value_MG[None, None])
    return found[0, 0]
