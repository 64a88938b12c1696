"""The loss of one response as a plain function of two logit matrices: for notebooks, and for checks."""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor

from simct_pl.errors import AlignmentError, require_choice
from simct_pl.losses.base import Objective, UnitChunk
from simct_pl.losses.columns.candidate_scores import PrefixName, ScoreName
from simct_pl.losses.divergences import DivergenceName
from simct_pl.losses.inputs.unit_rows import build_unit_rows
from simct_pl.losses.inputs.vocab_tables import PairTables
from simct_pl.losses.shared_vocab import SharedVocabLoss
from simct_pl.losses.simct import SimCTLoss
from simct_pl.tokenization.shared_vocab import SharedVocab
from simct_pl.types import UnitAlignment

ObjectiveName = Literal["simct", "exact"]


def distillation_loss(
    student_logits_SV: Tensor,
    teacher_logits_TV: Tensor,
    alignment: UnitAlignment,
    shared_vocab: SharedVocab,
    *,
    score: ScoreName = "mean_logprob",
    prefix: PrefixName = "keep",
    rest: bool = False,
    divergence: DivergenceName = "rkl",
    jsd_beta: float = 0.5,
    skew: float = 0.1,
    mass_threshold: float | None = None,
    objective: ObjectiveName = "simct",
) -> Tensor:
    """Sum over the units of one response of D(q_student, q_teacher) (paper Eq. 9 before normalisation), 0-d.

    Args:
        student_logits_SV: [S, student vocabulary], any float dtype; row i predicts response token i (already shifted).
        teacher_logits_TV: [T, teacher vocabulary]; the same for the teacher. No gradient reaches it.
        alignment: the units of the response, with the ids of both sides.
        shared_vocab: the pair's shared vocabulary.
        score, prefix, rest: the candidate rule (`simct` only), see CandidateRule. The defaults are the paper's.
        divergence: rkl | kl | jsd | skl | srkl | akl | tvd | top1_ce; jsd_beta and skew belong to it.
        mass_threshold: units whose candidates hold less than 1 / mass_threshold of the teacher's mass are dropped.
        objective: `simct`, or `exact` (1:1 units of a shared token only, over the shared tokens).

    Raises:
        RecipeError: for an unknown name or a combination that has no meaning.
        AlignmentError: if the logits do not have one row a response token, or fewer columns than the vocabulary.
    """
    require_choice("objective", objective, get_args(ObjectiveName))
    loss: Objective
    if objective == "exact":
        loss = SharedVocabLoss(divergence, jsd_beta, skew)
    else:
        loss = SimCTLoss(score, prefix, rest, divergence, jsd_beta, skew, mass_threshold)
    check_logits("student", student_logits_SV, alignment.num_student_tokens, len(shared_vocab.student_columns))
    check_logits("teacher", teacher_logits_TV, alignment.num_teacher_tokens, len(shared_vocab.teacher_columns))
    device = student_logits_SV.device
    rows = build_unit_rows([alignment], shared_vocab, with_prefixes=loss.uses_prefixes).to(device)
    if rows.num_units == 0:
        return student_logits_SV[:0].sum()  # zero, but one that runs backward
    tables = PairTables.build(shared_vocab, device)
    chunk = UnitChunk(
        student_logits_SV[rows.student_rows_N], teacher_logits_TV.to(device)[rows.teacher_rows_M], rows, tables
    )
    return loss(chunk).loss_U.sum()


def check_logits(side: str, logits: Tensor, num_tokens: int, vocab_size: int) -> None:
    """Raise an AlignmentError unless logits are [num_tokens, at least vocab_size]."""
    if logits.ndim != 2 or len(logits) != num_tokens:
        raise AlignmentError(
            f"{side} logits have shape {list(logits.shape)}; expected [{num_tokens}, vocabulary]: "
            "one row a response token (stop included), and row i predicts token i."
        )
    if logits.shape[1] < vocab_size:
        raise AlignmentError(
            f"{side} logits have {logits.shape[1]} columns, but the {side}'s tokenizer has {vocab_size} ids. "
            "Pass the logits of the model that the tokenizer belongs to."
        )
