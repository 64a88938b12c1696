"""GOLD's loss of one response as TRL 1.16 computes it, faults included: for comparisons with numbers that it gave.

In: two logit matrices and an alignment, as distillation_loss takes them. Out: TRL's number. It differs from GOLDLoss in

    rows      "observed" lacks the shift by one: token i is read from the row that predicts token i + 1
    end       the last token of either side is left out, whether it is a stop or not (uld_skip_*_eos)
    names     tokens are matched by their spelling in the vocabulary (`Ġa`, `▁a`), not by their bytes
    sum       the mean over units, so that a long response counts no more than a short one

The first makes a unit depend on its neighbour, so this is a function and no Objective: units of a chunk never do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from simct_pl.errors import require_choice
from simct_pl.losses.api import check_logits
from simct_pl.losses.base import UnitChunk
from simct_pl.losses.gold import GOLDLoss, MergeName, merged_mass
from simct_pl.losses.inputs.logprobs import ModelLogProbs
from simct_pl.losses.inputs.unit_rows import build_unit_rows
from simct_pl.losses.inputs.vocab_tables import PairTables
from simct_pl.tokenization.shared_vocab import SharedVocab
from simct_pl.types import STUDENT_END, STUDENT_START, TEACHER_END, TEACHER_START, UnitAlignment

TRLMergeName = Literal["observed", "bayesian"]


@dataclass(frozen=True)
class _Reading:
    """merge: TRL's strategy in GOLDLoss's terms. late: rows that it reads behind the right one."""

    merge: MergeName
    late: int


READINGS: dict[TRLMergeName, _Reading] = {"observed": _Reading("first", 1), "bayesian": _Reading("last", 0)}


def trl_gold_loss(
    student_logits_SV: Tensor,
    teacher_logits_TV: Tensor,
    alignment: UnitAlignment,
    shared_vocab: SharedVocab,
    matches: tuple[Tensor, Tensor],
    *,
    merge: TRLMergeName = "observed",
    beta: float = 0.5,
    matched_weight: float | None = None,
) -> Tensor:
    """The hybrid loss of TRL's ULDLoss (uld_use_hybrid_loss, use_extended_uld) for one response, 0-d.

    Args:
        student_logits_SV, teacher_logits_TV, alignment, shared_vocab: see distillation_loss.
        matches: ids that are compared by name, int64 [matches] of the student and of the teacher: matches_by_spelling.
        merge: TRL's uld_token_merge_strategy. beta, matched_weight: see GOLDLoss; the defaults are TRL's.

    Raises:
        RecipeError: for an unknown merge, or a number outside its range. AlignmentError: see distillation_loss.
    """
    require_choice("merge", merge, get_args(TRLMergeName))
    check_logits("student", student_logits_SV, alignment.num_student_tokens, len(shared_vocab.student_columns))
    check_logits("teacher", teacher_logits_TV, alignment.num_teacher_tokens, len(shared_vocab.teacher_columns))
    reading, device = READINGS[merge], student_logits_SV.device
    objective = _Matched(matches, reading.merge, beta, matched_weight)
    rows = build_unit_rows([_without_last_token(alignment)], shared_vocab, with_prefixes=False).to(device)
    if rows.num_units == 0:
        return student_logits_SV[:0].sum()  # zero, but one that runs backward
    student_NK = student_logits_SV[rows.student_rows_N + reading.late]
    teacher_MK = teacher_logits_TV.to(device)[rows.teacher_rows_M + reading.late]
    return objective(UnitChunk(student_NK, teacher_MK, rows, PairTables.build(shared_vocab, device))).loss_U.mean()


def matches_by_spelling(student: Mapping[str, int], teacher: Mapping[str, int]) -> tuple[Tensor, Tensor]:
    """Ids of the student and of the teacher with equal strings, int64 [matches] each, in the teacher's order.

    student, teacher: string → id, as a tokenizer's get_vocab() gives it.
    """
    pairs = sorted((teacher[spelling], student[spelling]) for spelling in student.keys() & teacher.keys())
    teacher_ids, student_ids = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).unbind(-1)
    return student_ids, teacher_ids


class _Matched(GOLDLoss):
    """GOLDLoss with the matches given, and every stop an id like others."""

    def __init__(
        self, matches: tuple[Tensor, Tensor], merge: MergeName, beta: float, matched_weight: float | None
    ) -> None:
        super().__init__(merge, beta, matched_weight)
        self.matches = matches

    @override
    def masses(self, side: ModelLogProbs) -> Tensor:
        return merged_mass(side, self.merge)

    @override
    def matched_ids(self, chunk: UnitChunk) -> tuple[Tensor, Tensor]:
        student_ids, teacher_ids = self.matches
        device = chunk.student_logits_NK.device
        return student_ids.to(device), teacher_ids.to(device)


def _without_last_token(alignment: UnitAlignment) -> UnitAlignment:
    """The units of all tokens but the last of each side. What stays of a unit that loses a token, on one side only or
    on both, is one more unit if both sides have some of it: its bytes then differ, which TRL does not look at.
    """
    units_U6 = alignment.units_U6
    ends = np.array([alignment.num_student_tokens - 1, alignment.num_teacher_tokens - 1])
    inside_U = (units_U6[:, [STUDENT_END, TEACHER_END]] <= ends).all(1)
    kept_U6 = units_U6[inside_U]
    cut_E6 = units_U6[~inside_U][:1].copy()
    cut_E6[:, [STUDENT_END, TEACHER_END]] = ends
    both_E = (cut_E6[:, [STUDENT_START, TEACHER_START]] < ends).all(1)
    units_U6 = np.concatenate([kept_U6, cut_E6[both_E]])
    return replace(alignment, units_U6=units_U6, has_stop=False, supervised_U=np.ones(len(units_U6), bool))
