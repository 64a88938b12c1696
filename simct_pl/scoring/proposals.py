"""Which continuations off the sampled path become candidates: one model's likeliest tokens that the other does not own.

In: hidden states at the starts of units. Out: for each unit a few tokens of the proposing model and their spelling in
the other's tokens. What is left out is counted by reason.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from simct_pl.errors import RecipeError
from simct_pl.scoring.heads import LMHead
from simct_pl.scoring.side import at_least_fp32
from simct_pl.scoring.spelling import Speller


@dataclass(frozen=True)
class Continuations:
    """How many continuations are graded, and where.

    Args:
        student_k: at each unit start, this many of the student's likeliest unshared tokens, which the teacher spells.
        teacher_k: the reverse. It costs the student a second forward, of the continuations alone.
        min_probability: a proposer's token below it is no candidate.
        units_per_response: only the units of a response with the most proposed probability, for each direction; null:
            all units.
        max_tokens: the longest spelling, in tokens.

    Raises:
        RecipeError: for a value out of range.
    """

    student_k: int = 2
    teacher_k: int = 0
    min_probability: float = 0.001
    units_per_response: int | None = None
    max_tokens: int = 8

    def __post_init__(self) -> None:
        if min(self.student_k, self.teacher_k) < 0:
            raise RecipeError(
                f"student_k={self.student_k}, teacher_k={self.teacher_k}: a number of candidates cannot be negative."
            )
        if not 0 < self.min_probability < 1:
            raise RecipeError(f"min_probability is {self.min_probability}; expected more than 0 and less than 1.")
        if self.units_per_response is not None and self.units_per_response < 1:
            raise RecipeError(
                f"units_per_response is {self.units_per_response}; expected at least 1, or null for all units."
            )
        if self.max_tokens < 2:
            raise RecipeError(f"max_tokens is {self.max_tokens}; an unshared token takes at least 2 to spell.")

    @property
    def num_slots(self) -> int:
        """Most continuations of a unit."""
        return self.student_k + self.teacher_k


class LeftOut(StrEnum):
    """Why a token that was likely enough is no candidate."""

    UNIT_LIMIT = "unit_limit"  # its unit is not among units_per_response
    THE_UNIT = "the_unit"  # it is what the response goes on with, a candidate already
    SAME_BYTES = "same_bytes"  # a likelier token of the unit has the same bytes (a byte-fallback twin)
    UNSPELLABLE = "unspellable"  # half a character, or bytes that the other tokenizer changes
    TOO_LONG = "too_long"  # more than max_tokens to spell


class Proposal(NamedTuple):
    """A candidate off the path: a token of the proposing model at a unit's start, and how the other spells it."""

    unit: int
    token_id: int
    spelling: tuple[int, ...]


class Likeliest(NamedTuple):
    """The k likeliest unshared tokens of U units, likeliest first: ids and log-probabilities, and what all hold.

    ids_Uk: int64. logp_Uk: float64. unshared_U: float64, probability of all unshared tokens.
    """

    ids_Uk: np.ndarray
    logp_Uk: np.ndarray
    unshared_U: np.ndarray


@torch.no_grad()
def likeliest_unshared(
    hidden_NH: Tensor, row_U: Tensor, head: LMHead, unshared_ids_W: np.ndarray, k: int, chunk_tokens: int
) -> Likeliest:
    """The likeliest unshared tokens of one model at some rows; at most chunk_tokens rows have logits at a time."""
    ids_W = torch.from_numpy(unshared_ids_W).to(hidden_NH.device)
    k = min(k, len(ids_W))
    parts = []
    for row_C in row_U.to(hidden_NH.device).split(chunk_tokens):
        states_CH = hidden_NH.index_select(0, row_C).to(head.projection.weight.dtype)
        logp_CW = at_least_fp32(head(states_CH)).log_softmax(-1).index_select(1, ids_W)
        logp_Ck, place_Ck = logp_CW.topk(k)
        parts.append((ids_W[place_Ck], logp_Ck, logp_CW.exp().sum(-1)))
    if not parts:
        return Likeliest(np.empty((0, k), np.int64), np.empty((0, k)), np.empty(0))
    ids_Uk, logp_Uk, unshared_U = (torch.cat(column).cpu().numpy() for column in zip(*parts, strict=True))
    return Likeliest(ids_Uk, logp_Uk.astype(np.float64), unshared_U.astype(np.float64))


def choose(
    found: Likeliest,
    unit_texts: Sequence[bytes],
    response_U: np.ndarray,
    speller: Speller,
    config: Continuations,
) -> tuple[list[Proposal], Counter[str]]:
    """Proposals of one direction in order of units, and how many tokens were left out, by reason.

    unit_texts: what each unit spells. response_U: to which response it belongs, ascending. A choice depends on its
    response alone, never on how responses were batched.
    """
    likely_Uk = found.logp_Uk >= math.log(config.min_probability)
    allowed_U = _most_of_each_response(
        np.where(likely_Uk, np.exp(found.logp_Uk), 0.0).sum(1), response_U, config.units_per_response
    )
    left_out: Counter[str] = Counter({LeftOut.UNIT_LIMIT: int(likely_Uk[~allowed_U].sum())})
    unit_P, place_P = np.nonzero(likely_Uk & allowed_U[:, None])
    id_P = found.ids_Uk[unit_P, place_P].tolist()
    proposals: dict[tuple[int, bytes], Proposal] = {}
    for unit, token_id, spelling in zip(unit_P.tolist(), id_P, speller(id_P), strict=True):
        data = speller.own[token_id]
        if (reason := _reason(data, unit_texts[unit], spelling, config.max_tokens)) is not None:
            left_out[reason] += 1
        elif (unit, data) in proposals:
            left_out[LeftOut.SAME_BYTES] += 1
        else:
            assert spelling is not None
            proposals[unit, data] = Proposal(unit, token_id, spelling)
    return list(proposals.values()), left_out


def _reason(data: bytes, unit_text: bytes, spelling: tuple[int, ...] | None, max_tokens: int) -> LeftOut | None:
    if data == unit_text:
        return LeftOut.THE_UNIT
    if spelling is None:
        return LeftOut.UNSPELLABLE
    return LeftOut.TOO_LONG if len(spelling) > max_tokens else None


def _most_of_each_response(mass_U: np.ndarray, response_U: np.ndarray, most: int | None) -> np.ndarray:
    """Which units are among the `most` of their response with the most mass (the earlier of equals), bool [U]."""
    if most is None:
        return np.ones(len(mass_U), bool)
    order = np.lexsort((-mass_U, response_U))
    first = np.searchsorted(response_U[order], response_U[order])
    allowed_U = np.zeros(len(mass_U), bool)
    allowed_U[order[np.arange(len(order)) - first < most]] = True
    return allowed_U
