"""Candidate scores of one model at the start of each unit (paper Eq. 6-7, and every named variant of them).

In: one side's logit rows of a handful of units. Out: scores [U, C], C = V shared columns + one for the unit itself
(+ one for the rest). Everything is computed over the FULL vocabulary in at least fp32. One extra column a row is
enough: it equals the [units x (shared + units)] matrix with foreign units masked. Entries that are no candidate are
-inf.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from simct_pl.errors import RecipeError
from simct_pl.losses.divergences import require_choice
from simct_pl.scoring.units import UnitRows
from simct_pl.tokenization.shared_vocab import SharedVocab

ScoreName = Literal["mean_logprob", "mean_logit", "sum_logprob"]
PrefixName = Literal["keep", "mask", "subtract", "marginal"]


@dataclass(frozen=True)
class CandidateRule:
    """How candidates are scored.

    score: `mean_logprob` (paper Eq. 7), `mean_logit` (released code) or `sum_logprob` (the unit's true probability).
    prefix: what becomes of shared tokens that are a proper byte prefix of a unit, whose mass contains the unit's:
        `keep` (paper), `mask` (dropped), `subtract` (each model takes the unit's probability out of its own first
        token) or `marginal` (every token gives its mass to the longest shared token that is its byte prefix, and the
        unit is then carved out of the bucket of its first token: no mass is lost, none is counted twice).
    rest: one more candidate that holds all probability no other candidate has.

    Raises:
        RecipeError: for an unknown name, or for rest without a score and prefix under which masses add up.
    """

    score: ScoreName = "mean_logprob"
    prefix: PrefixName = "keep"
    rest: bool = False

    def __post_init__(self) -> None:
        require_choice("score", self.score, get_args(ScoreName))
        require_choice("prefix", self.prefix, get_args(PrefixName))
        if self.rest and (self.score != "sum_logprob" or self.prefix == "keep"):
            raise RecipeError(
                f"rest=True with score={self.score!r}, prefix={self.prefix!r}: candidate masses may exceed 1. "
                "Use score='sum_logprob' with prefix='mask', 'subtract' or 'marginal'."
            )


@dataclass(frozen=True)
class SideTables:
    """One side's view of the shared vocabulary, on the device of its logits (all int64).

    ids_V: column → id. stop_ids_E, stop_columns_E: further stop ids, which count for the stop column.
    bucket_ids_E, bucket_columns_E: ids without a column and the bucket their mass belongs to, further stop ids
        included.
    """

    ids_V: Tensor
    stop_ids_E: Tensor
    stop_columns_E: Tensor
    bucket_ids_E: Tensor
    bucket_columns_E: Tensor

    def to(self, device: torch.device) -> SideTables:
        return SideTables(**{name: tensor.to(device) for name, tensor in vars(self).items()})


@dataclass(frozen=True)
class PairTables:
    """Both sides' tables; what the objectives know of a shared vocabulary."""

    student: SideTables
    teacher: SideTables
    stop_column: int | None

    @classmethod
    def build(cls, shared: SharedVocab, device: torch.device | str = "cpu") -> PairTables:
        student = _side_tables(
            shared.student_ids_V, shared.student_columns, shared.student_buckets, shared.student_extra_stop_ids
        )
        teacher = _side_tables(
            shared.teacher_ids_V, shared.teacher_columns, shared.teacher_buckets, shared.teacher_extra_stop_ids
        )
        return cls(student.to(torch.device(device)), teacher.to(torch.device(device)), shared.stop_column)


def _side_tables(
    ids_V: np.ndarray, column_K: np.ndarray, bucket_K: np.ndarray, extra_stop_ids: tuple[int, ...]
) -> SideTables:
    stops = np.asarray(extra_stop_ids, np.int64)
    owns_column_K = np.zeros(len(column_K), bool)
    owns_column_K[ids_V] = True
    bucketed = np.flatnonzero(~owns_column_K & (bucket_K >= 0))
    arrays = (ids_V, stops, column_K[stops], bucketed, bucket_K[bucketed])
    return SideTables(*(torch.as_tensor(array, dtype=torch.int64) for array in arrays))


@dataclass(frozen=True)
class SideScores:
    """One side of a chunk.

    scores_UC: candidate scores, -inf where a row has no such candidate. candidate_logmass_U: log of the probability
    that the row's candidates hold, in the model's own terms (with `keep` a unit counts twice, which is the fault of
    `keep`).
    """

    scores_UC: Tensor
    candidate_logmass_U: Tensor


def score_side(
    logits_NK: Tensor,
    ids_N: Tensor,
    unit_N: Tensor,
    first_U: Tensor,
    rows: UnitRows,
    tables: SideTables,
    rule: CandidateRule,
) -> SideScores:
    """Score the candidates of each unit with one model.

    logits_NK: [tokens, the model's vocabulary], any float dtype; row i predicts ids_N[i]. unit_N, first_U: as in
        UnitRows.
    """
    logits_NK = at_least_fp32(logits_NK)
    logz_N = logits_NK.logsumexp(-1)
    realised_N = logits_NK.gather(-1, ids_N[:, None]).squeeze(-1)
    token_logp_N = realised_N - logz_N
    num_units = len(first_U)
    own_column_U = rows.column_U < 0

    def sum_by_unit(value_N: Tensor) -> Tensor:
        return value_N.new_zeros(num_units).index_add(0, unit_N, value_N)

    unit_logp_U = sum_by_unit(token_logp_N)
    first_logp_UK = logits_NK[first_U] - logz_N[first_U, None]
    if rule.prefix != "keep":
        later_logp_U = sum_by_unit(token_logp_N.index_fill(0, first_U, 0.0))
        is_single_U = torch.bincount(unit_N, minlength=num_units) == 1
        first_logp_UK = _carve_units(first_logp_UK, ids_N[first_U], later_logp_U, is_single_U, own_column_U)
    column_logp_UV = column_logprobs(first_logp_UK, tables, marginal=rule.prefix == "marginal")
    hidden_UV = _hidden_columns(column_logp_UV, rows) if rule.prefix == "mask" else None
    kept_logp_UV = column_logp_UV if hidden_UV is None else column_logp_UV.masked_fill(hidden_UV, -math.inf)
    true_logp_UC = _with_unit(kept_logp_UV, unit_logp_U, own_column_U)
    if rule.rest:
        rest_U = _rest_logprob(first_logp_UK, column_logp_UV, hidden_UV, tables, rule)
        return SideScores(torch.cat([true_logp_UC, rest_U[:, None]], -1), torch.zeros_like(rest_U))
    if rule.score == "sum_logprob":
        scores_UC = true_logp_UC
    elif rule.score == "mean_logprob":
        length_U = torch.bincount(unit_N, minlength=num_units)
        scores_UC = _with_unit(kept_logp_UV, unit_logp_U / length_U, own_column_U)
    else:
        mean_logit_U = sum_by_unit(realised_N) / torch.bincount(unit_N, minlength=num_units)
        scores_UC = _with_unit(kept_logp_UV + logz_N[first_U, None], mean_logit_U, own_column_U)
    return SideScores(scores_UC, true_logp_UC.logsumexp(-1))


def at_least_fp32(logits: Tensor) -> Tensor:
    """Half precision is widened BEFORE anything is masked or summed; float64 stays."""
    return logits if logits.dtype in (torch.float32, torch.float64) else logits.float()


def column_logprobs(first_logp_UK: Tensor, tables: SideTables, *, marginal: bool) -> Tensor:
    """Log-probability of each shared column, [U, V], from that of every id.

    The stop column is the event "any stop id"; with `marginal`, every column is its whole bucket.
    """
    column_UV = first_logp_UK[:, tables.ids_V]
    ids_E = tables.bucket_ids_E if marginal else tables.stop_ids_E
    columns_E = tables.bucket_columns_E if marginal else tables.stop_columns_E
    if len(ids_E) == 0:
        return column_UV
    member_UE = first_logp_UK[:, ids_E]
    with torch.no_grad():  # the usual log-sum-exp shift, per bucket
        shift_UV = column_UV.scatter_reduce(1, columns_E.expand_as(member_UE), member_UE, "amax")
    total_UV = (column_UV - shift_UV).exp().index_add(1, columns_E, (member_UE - shift_UV[:, columns_E]).exp())
    return total_UV.log() + shift_UV


def shared_logprobs(logits_NK: Tensor, first_U: Tensor, tables: SideTables) -> Tensor:
    """log p of the shared columns at each unit's first token, [U, V], normalised over the full vocabulary."""
    return column_logprobs(at_least_fp32(logits_NK[first_U]).log_softmax(-1), tables, marginal=False)


def _carve_units(
    first_logp_UK: Tensor, first_id_U: Tensor, later_logp_U: Tensor, is_single_U: Tensor, own_column_U: Tensor
) -> Tensor:
    """Take each unit's probability out of its own first token: p(first) - p(unit) = p(first) * (1 - p(later | first)).

    Done on the token, before any bucket is summed, because "bucket - unit" would cancel where the unit is most of its
    bucket.
    """
    unit_E = torch.nonzero(own_column_U).squeeze(-1)
    id_E = first_id_U[unit_E]
    # A later part that is certain to rounding leaves eps of the first token, not nothing.
    gap_E = later_logp_U[unit_E].clamp_max(-torch.finfo(first_logp_UK.dtype).eps)
    left_E = first_logp_UK[unit_E, id_E] + torch.log(-torch.expm1(gap_E))
    return first_logp_UK.index_put((unit_E, id_E), left_E.masked_fill(is_single_U[unit_E], -math.inf))


def _hidden_columns(column_UV: Tensor, rows: UnitRows) -> Tensor:
    """Which columns are a proper prefix of a unit that has a column of its own, bool [U, V]."""
    hidden_UV = torch.zeros_like(column_UV, dtype=torch.bool)
    hidden_UV[rows.prefix_unit_P, rows.prefix_column_P] = True
    return hidden_UV


def _rest_logprob(
    first_logp_UK: Tensor, column_UV: Tensor, hidden_UV: Tensor | None, tables: SideTables, rule: CandidateRule
) -> Tensor:
    """log of all probability that is in no candidate, [U]: ids without a column, and what is left of hidden columns.

    Summed directly: one minus the candidates' mass would lose a small rest to rounding.
    """
    inside = [tables.ids_V, tables.bucket_ids_E if rule.prefix == "marginal" else tables.stop_ids_E]
    parts = [_logsumexp_where(first_logp_UK.index_fill(-1, torch.cat(inside), -math.inf))]
    if hidden_UV is not None:
        parts.append(_logsumexp_where(column_UV.masked_fill(~hidden_UV, -math.inf)))
    return torch.stack(parts).logsumexp(0)


def _logsumexp_where(logp_UK: Tensor) -> Tensor:
    """logsumexp that gives the smallest normal number's log, and no gradient, to a row of nothing but -inf."""
    floor_U1 = torch.full_like(logp_UK[:, :1], math.log(torch.finfo(logp_UK.dtype).tiny))
    return torch.cat([logp_UK, floor_U1], -1).logsumexp(-1)


def _with_unit(column_UV: Tensor, unit_U: Tensor, own_column_U: Tensor) -> Tensor:
    """Append the unit's own column; -inf where a shared column already is the unit."""
    return torch.cat([column_UV, unit_U.masked_fill(~own_column_U, -math.inf)[:, None]], -1)
