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

import torch
from torch import Tensor

from simct_pl.errors import RecipeError, require_choice
from simct_pl.losses.columns.column_logprobs import column_logprobs
from simct_pl.losses.inputs.logprobs import ModelLogProbs, at_least_fp32
from simct_pl.losses.inputs.unit_rows import UnitRows
from simct_pl.losses.inputs.vocab_tables import SideTables

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
class SideScores:
    """One side of a chunk.

    scores_UC: candidate scores, -inf where a row has no such candidate. candidate_logmass_U: log of the probability
    that the row's candidates hold, in the model's own terms (with `keep` a unit counts twice, which is the fault of
    `keep`).
    """

    scores_UC: Tensor
    candidate_logmass_U: Tensor


def score_side(side: ModelLogProbs, rows: UnitRows, rule: CandidateRule) -> SideScores:
    """Score the candidates of each unit with one model."""
    # A unit that is a shared token has its column already; the others get the extra one.
    own_column_U = rows.column_U < 0
    first_logp_UK = side.first_logp_UK
    # A unit's probability lies within that of its own first token. Taken out there, it is not counted twice.
    if rule.prefix != "keep":
        first_logp_UK = _carve_units(side, own_column_U)
    column_UV = column_logprobs(first_logp_UK, side.tables, marginal=rule.prefix == "marginal")
    hidden_UV = _hidden_columns(column_UV, rows) if rule.prefix == "mask" else None
    kept_UV = column_UV if hidden_UV is None else column_UV.masked_fill(hidden_UV, -math.inf)
    # With the rest every row adds up to 1: log-probabilities as they are, and a candidate mass of 1, whose log is 0.
    if rule.rest:
        rest_U = _rest_logprob(first_logp_UK, column_UV, hidden_UV, side.tables, rule)
        true_UC = _with_unit(kept_UV, side.unit_logp_U, own_column_U)
        return SideScores(torch.cat([true_UC, rest_U[:, None]], -1), torch.zeros_like(rest_U))
    if rule.score == "sum_logprob":
        scores_UC = _with_unit(kept_UV, side.unit_logp_U, own_column_U)
    # Eq. 7: the mean over the unit's tokens, so that a unit of many is not improbable by its length alone.
    elif rule.score == "mean_logprob":
        scores_UC = _with_unit(kept_UV, side.unit_logp_U / side.length_U, own_column_U)
    else:
        # As released: means of logits. A logit is a log-probability plus the log-normaliser of its row, and columns
        # belong to the row of the unit's first token.
        logit_N = at_least_fp32(side.logits_NK.gather(-1, side.ids_N[:, None]).squeeze(-1))
        logz_U = (logit_N - side.token_logp_N)[side.first_U]
        scores_UC = _with_unit(kept_UV + logz_U[:, None], side.sum_by_unit(logit_N) / side.length_U, own_column_U)
    return SideScores(scores_UC, _logmass(kept_UV, side.unit_logp_U, own_column_U))


@torch.no_grad()
def _logmass(kept_UV: Tensor, unit_logp_U: Tensor, own_column_U: Tensor) -> Tensor:
    return torch.logaddexp(kept_UV.logsumexp(-1), unit_logp_U.masked_fill(~own_column_U, -math.inf))


def _carve_units(side: ModelLogProbs, own_column_U: Tensor) -> Tensor:
    """Take each unit's probability out of its own first token: p(first) - p(unit) = p(first) * (1 - p(later | first)).

    Done on the token, before any bucket is summed, because "bucket - unit" would cancel where the unit is most of its
    bucket. A unit of one token leaves nothing.
    """
    first_logp_U = side.token_logp_N[side.first_U]
    # With the first tokens' terms set to 0, the sum over a unit is that of its later tokens.
    later_logp_U = side.sum_by_unit(side.token_logp_N.index_fill(0, side.first_U, 0.0))
    # A later part that is certain to rounding leaves eps of the first token, not nothing.
    gap_U = later_logp_U.clamp_max(-torch.finfo(first_logp_U.dtype).eps)
    left_U = first_logp_U + torch.log(-torch.expm1(gap_U))
    left_U = left_U.masked_fill(side.length_U == 1, -math.inf)
    # Which units they are only the device knows: the others' first tokens are written again as they are. Out of place,
    # because these may be the very numbers that the softmax has saved for backward.
    value_U = torch.where(own_column_U, left_U, first_logp_U)
    return side.first_logp_UK.scatter(1, side.ids_N[side.first_U, None], value_U[:, None])


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
    # An id is inside if it has a column or counts for one. All other ids are the rest, and so are hidden columns, less
    # what was carved out of them.
    merge = tables.buckets if rule.prefix == "marginal" else tables.stops
    inside = [tables.ids_V, merge.ids_E]
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
