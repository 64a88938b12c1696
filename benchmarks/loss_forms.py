"""The same loss, and others, in the forms that one meets: each takes a Problem and returns a loss to run backward.

Written here from the papers' descriptions, except for TRL's, which is called from the package itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from benchmarks.synthetic import Problem
from simct_pl.losses.base import Objective, UnitChunk
from simct_pl.losses.inputs.unit_rows import unit_bounds
from simct_pl.losses.simct import SimCTLoss
from simct_pl.losses.token_conditional import TokenConditionalLoss
from simct_pl.training.chunked_loss import chunked_loss

Form = Callable[[Problem, int], Tensor]

MARGINAL = SimCTLoss("sum_logprob", "marginal")
PAPER = SimCTLoss("mean_logprob", "keep")


def products(problem: Problem, chunk_tokens: int) -> Tensor:
    """What nobody can avoid: logits of both heads, and the student head's two gradients, in reused buffers."""
    student, teacher = problem.student_head.projection.weight, problem.teacher_head.projection.weight.detach()
    hidden_NH, weight_KH = problem.student_hidden_NH.detach(), student.detach()
    student_NK = weight_KH.new_empty(chunk_tokens, len(weight_KH))
    teacher_MK = teacher.new_empty(chunk_tokens, len(teacher))
    student.grad, grad_hidden_NH = torch.zeros_like(weight_KH), torch.empty_like(hidden_NH)
    for start in range(0, len(hidden_NH), chunk_tokens):
        states_NH = hidden_NH[start : start + chunk_tokens]
        logits_NK = torch.mm(states_NH, weight_KH.T, out=student_NK[: len(states_NH)])
        torch.mm(logits_NK, weight_KH, out=grad_hidden_NH[start : start + chunk_tokens])
        student.grad.addmm_(logits_NK.T, states_NH)
    for start in range(0, len(problem.teacher_hidden_MH), chunk_tokens):
        states_MH = problem.teacher_hidden_MH[start : start + chunk_tokens]
        torch.mm(states_MH, teacher.T, out=teacher_MK[: len(states_MH)])
    return torch.zeros((), requires_grad=True)


def chunked(problem: Problem, chunk_tokens: int, *, objective: Objective) -> Tensor:
    """simct_pl: gradients in the forward."""
    loss, _ = chunked_loss(
        problem.student_hidden_NH,
        problem.teacher_hidden_MH,
        problem.rows,
        student_head=problem.student_head,
        teacher_head=problem.teacher_head,
        objective=objective,
        tables=problem.tables,
        chunk_tokens=chunk_tokens,
    )
    return loss


def conditional(problem: Problem, chunk_tokens: int) -> Tensor:
    """simct_pl's chunks under the objective that asks one question a student token."""
    objective = TokenConditionalLoss()
    objective.use_labels(*problem.labels)
    with_paths = replace(problem, rows=replace(problem.rows, paths=problem.paths))
    return chunked(with_paths, chunk_tokens, objective=objective)


def recomputed(problem: Problem, chunk_tokens: int, *, objective: Objective) -> Tensor:
    """The same chunks under activation checkpointing: both heads run again in backward."""

    def grade(student_states: Tensor, teacher_states: Tensor, start: int, end: int) -> Tensor:
        with torch.no_grad():
            teacher_logits = problem.teacher_head(teacher_states)
        rows = problem.rows.slice(start, end)
        chunk = UnitChunk(problem.student_head(student_states), teacher_logits, rows, problem.tables)
        return objective(chunk).loss_U.sum()

    total = torch.zeros(())
    for start, end in unit_bounds(problem.rows, chunk_tokens):
        rows = problem.rows.slice(start, end)
        states = problem.student_hidden_NH[rows.student_rows_N], problem.teacher_hidden_MH[rows.teacher_rows_M]
        part = checkpoint(grade, *states, start, end, use_reentrant=False)
        assert isinstance(part, Tensor)
        total = total + part
    return total


def dense(problem: Problem, chunk_tokens: int, *, objective: Objective) -> Tensor:
    """All logits of both models at once, and autograd for the rest."""
    student_NK, teacher_MK = _all_logits(problem)
    return objective(UnitChunk(student_NK, teacher_MK, problem.rows, problem.tables)).loss_U.sum()


def row_by_row(problem: Problem, chunk_tokens: int) -> Tensor:
    """SimCT unit by unit in a Python loop over dense logits, as the released code goes about it."""
    student_NK, teacher_MK = _all_logits(problem)
    rows, tables = problem.rows, problem.tables
    sides = (
        (student_NK, rows.student_ids_N, rows.student_unit_N, rows.student_first_U, tables.student.ids_V),
        (teacher_MK, rows.teacher_ids_M, rows.teacher_unit_M, rows.teacher_first_U, tables.teacher.ids_V),
    )
    losses = []
    for unit in range(rows.num_units):
        logq = []
        for logits_NK, ids_N, unit_N, first_U, ids_V in sides:
            scores_V = logits_NK[first_U[unit]][ids_V]
            if rows.column_U[unit] < 0:
                tokens = torch.nonzero(unit_N == unit).squeeze(-1)
                scores_V = torch.cat([scores_V, logits_NK[tokens, ids_N[tokens]].mean()[None]])
            logq.append(scores_V.log_softmax(-1))
        losses.append((logq[0].exp() * (logq[0] - logq[1])).sum())
    return torch.stack(losses).sum()


def same_tokenizer(problem: Problem, chunk_tokens: int) -> Tensor:
    """Dense reverse KL over one whole vocabulary: what a teacher of the same family would cost (student's sizes)."""
    student_NK = problem.student_head(problem.student_hidden_NH)
    with torch.no_grad():
        teacher_NK = problem.student_head(problem.student_hidden_NH * 1.1)
    student_logp, teacher_logp = student_NK.log_softmax(-1), teacher_NK.log_softmax(-1)
    return (student_logp.exp() * (student_logp - teacher_logp)).sum()


def gold(problem: Problem, chunk_tokens: int) -> Tensor:
    """TRL's ULDLoss as its GOLD trainer calls it for two tokenizers: byte offsets, hybrid, beta 1."""
    from trl.experimental.gold.gold_trainer import ULDLoss

    config = SimpleNamespace(
        uld_crossentropy_weight=0.0,
        uld_distillation_weight=1.0,
        uld_student_temperature=1.0,
        uld_teacher_temperature=1.0,
        uld_skip_student_eos=True,
        uld_skip_teacher_eos=True,
        use_extended_uld=True,
        uld_token_merge_strategy="observed",
        uld_use_hybrid_loss=True,
        uld_hybrid_matched_weight=None,
        uld_hybrid_unmatched_weight=None,
        beta=1.0,
    )
    loss = ULDLoss(config, device="cpu")
    student_ids, teacher_ids = problem.tables.student.ids_V.tolist(), problem.tables.teacher.ids_V.tolist()
    loss._vocab_mapping = dict(zip(teacher_ids, student_ids, strict=True))
    loss._teacher_matched_ids, loss._student_matched_ids = set(teacher_ids), set(student_ids)
    loss.mapping_tensor = torch.zeros(len(problem.teacher_head.projection.weight), dtype=torch.int64)
    loss.mapping_tensor[problem.tables.teacher.ids_V] = problem.tables.student.ids_V
    rows = problem.rows
    student_NK, teacher_MK = _all_logits(problem)
    student_ids_BS, teacher_ids_BS = rows.student_ids_N[None], rows.teacher_ids_M[None]
    unit_bytes_U = torch.maximum(torch.bincount(rows.student_unit_N), torch.bincount(rows.teacher_unit_M))
    offsets = [_byte_offsets(unit_N, unit_bytes_U)[None] for unit_N in (rows.student_unit_N, rows.teacher_unit_M)]
    ids = (student_ids_BS, teacher_ids_BS)
    found: Tensor = loss(student_NK[None], teacher_MK[None], *ids, *ids, *offsets)
    return found


def _byte_offsets(unit_N: Tensor, unit_bytes_U: Tensor) -> Tensor:
    """[N, 2] start and end of each token, if all tokens but the last of a unit are one byte long."""
    length_N = torch.ones_like(unit_N)
    last_U = torch.bincount(unit_N).cumsum(0) - 1
    length_N[last_U] = unit_bytes_U - torch.bincount(unit_N) + 1
    end_N = length_N.cumsum(0)
    return torch.stack([end_N - length_N, end_N], 1)


def _all_logits(problem: Problem) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        teacher_MK = problem.teacher_head(problem.teacher_hidden_MH)
    return problem.student_head(problem.student_hidden_NH), teacher_MK


FORMS: dict[str, Form] = {
    "head products alone": products,
    "simct_pl, mass-preserving (`marginal`)": partial(chunked, objective=MARGINAL),
    "simct_pl, one question a token": conditional,
    "simct_pl, as published (`keep`)": partial(chunked, objective=PAPER),
    "recomputed chunks (`marginal`)": partial(recomputed, objective=MARGINAL),
    "dense (`marginal`)": partial(dense, objective=MARGINAL),
    "same tokenizer, dense reverse KL": same_tokenizer,
    "TRL GOLD's loss": gold,
    "unit by unit, as released": row_by_row,
}
