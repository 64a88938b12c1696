"""Mass-preserving candidates, and besides the realised unit what else the student would have written.

At a unit's start h the candidates are those of SimCTLoss(sum_logprob, marginal), and the student's likeliest tokens v
that the teacher does not have, each with

    the student's    p_S(v | h), taken out of v's bucket
    the teacher's    p_T(z_1 … z_m | h) of its own spelling z of v's bytes, taken out of the bucket of z_1

Where one spelling begins another (`2`·`0` for `20`, `2`·`0`·`2` for `202`), the shorter one keeps what the longer one
does not have: "20, and then no 2". So the candidates stay disjoint and their masses add up to what they did before. The
teacher has read the spellings in the same forward as the response (simct_pl.scoring.tree).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from typing_extensions import override

from simct_pl.errors import RecipeError
from simct_pl.losses.base import Objective, UnitChunk, UnitLosses
from simct_pl.losses.divergences import DivergenceName, named_divergence
from simct_pl.scoring.columns import column_logprobs
from simct_pl.scoring.continuations import THE_UNIT, ContinuationRows, Proposer, check_proposals
from simct_pl.scoring.side import SideChunk
from simct_pl.tokenization.pair import TokenizerPair


class ContinuationLoss(Objective):
    """D(q_S, q_T) over the shared columns' buckets, the unit, and the continuations that were proposed.

    Args:
        k: at most so many continuations a unit. min_probability: the student's, of each.
        divergence: rkl | kl | jsd | skl | srkl | akl | tvd | top1_ce.

    Raises:
        RecipeError: for an unknown divergence or a number outside its range; when called before `prepare`.
    """

    def __init__(self, k: int = 4, min_probability: float = 0.01, divergence: DivergenceName = "rkl") -> None:
        check_proposals(k, min_probability)
        self.k, self.min_probability, self.divergence = k, min_probability, divergence
        self._divergence = named_divergence(divergence)
        self._proposer: Proposer | None = None
        self._pair: TokenizerPair | None = None

    @override
    def prepare(self, pair: TokenizerPair) -> None:
        if self._pair is not pair:
            self._pair, self._proposer = pair, Proposer(pair, self.k, self.min_probability)

    @property
    @override
    def proposer(self) -> Proposer:
        if self._proposer is None:
            raise RecipeError(f"{type(self).__name__} knows no tokenizers yet; call prepare(pair) first.")
        return self._proposer

    def __call__(self, chunk: UnitChunk) -> UnitLosses:
        student_UC = student_scores(chunk)
        with torch.no_grad():
            teacher_UC = teacher_scores(chunk)
        loss_U = self._divergence(student_UC.log_softmax(-1), teacher_UC.log_softmax(-1))
        masses = [scores.detach().logsumexp(-1) for scores in (student_UC, teacher_UC)]
        return UnitLosses(loss_U, torch.ones_like(loss_U, dtype=torch.bool), *masses)

    def describe(self) -> dict[str, object]:
        settings = {name: getattr(self, name) for name in ("k", "min_probability", "divergence")}
        unspelt = {} if self._proposer is None else {"tokens_without_spelling": self._proposer.num_unspelt}
        return {"objective": type(self).__name__, **settings, **unspelt}


def student_scores(chunk: UnitChunk) -> Tensor:
    """log of the mass of each candidate, [U, V + 1 + slots]; -inf where there is none."""
    side, rows, found = chunk.student, chunk.rows, chunk.continuations
    unit_O = (rows.column_U < 0).nonzero().squeeze(-1)
    if found is None:
        return _joined(side, unit_O, side.unit_logp_U[unit_O], None, None)
    token_E = side.first_logp_UK[found.unit_E, found.student_id_E]
    # A continuation is one token of the student's, and never the one that the unit begins with: nothing lies within it.
    emptied = found.unit_E, found.student_id_E, torch.full_like(token_E, 0.0)
    return _joined(side, unit_O, side.unit_logp_U[unit_O], (found, token_E), emptied)


def teacher_scores(chunk: UnitChunk) -> Tensor:
    """The same for the teacher, whose spellings may begin one another."""
    side, rows, found = chunk.teacher, chunk.rows, chunk.continuations
    unit_O = (rows.column_U < 0).nonzero().squeeze(-1)
    unit_logp_O = side.unit_logp_U[unit_O]
    if found is None:
        return _joined(side, unit_O, unit_logp_O, None, None)
    whole_E = side.first_logp_UK[found.unit_E, found.teacher_first_E] + found.teacher_rest_E
    top = found.parent_E == -1
    carved = found.unit_E[top], found.teacher_first_E[top], found.teacher_rest_E[top]
    unit_parent_O = found.unit_parent_U[unit_O]
    inside_E, inside_O = torch.zeros_like(whole_E), torch.zeros_like(unit_logp_O)
    nested = found.parent_E >= 0
    inside_E.index_add_(0, found.parent_E[nested], (whole_E[nested] - whole_E[found.parent_E[nested]]).exp())
    held = unit_parent_O >= 0
    inside_E.index_add_(0, unit_parent_O[held], (unit_logp_O[held] - whole_E[unit_parent_O[held]]).exp())
    within = found.parent_E == THE_UNIT
    place_E = torch.searchsorted(unit_O, found.unit_E[within])
    inside_O.index_add_(0, place_E, (whole_E[within] - unit_logp_O[place_E]).exp())
    left_E, left_O = whole_E + _log_left(inside_E), unit_logp_O + _log_left(inside_O)
    return _joined(side, unit_O, left_O, (found, left_E), carved, unit_is_carved_O=unit_parent_O == -1)


def _log_left(inside: Tensor) -> Tensor:
    """log(1 - inside), for shares that rounding may push to 1."""
    return torch.log1p(-inside.clamp_max(1 - torch.finfo(inside.dtype).eps))


def _joined(
    side: SideChunk,
    unit_O: Tensor,
    unit_score_O: Tensor,
    continuations: tuple[ContinuationRows, Tensor] | None,
    carved: tuple[Tensor, Tensor, Tensor] | None,
    unit_is_carved_O: Tensor | None = None,
) -> Tensor:
    """Buckets without what was carved out of their tokens, then the unit, then the continuations' slots.

    carved: (unit, first id, log-probability of what follows it) of continuations to take out of their first token.
    """
    own_O = unit_O if unit_is_carved_O is None else unit_O[unit_is_carved_O]
    first_O = side.first_U[own_O]
    later_O = side.sum_by_unit(side.token_logp_N.index_fill(0, side.first_U, 0.0))[own_O]
    events = [(own_O, side.ids_N[first_O], later_O)]
    if carved is not None:
        events.append(carved)
    unit_X, id_X, later_X = (torch.cat(parts) for parts in zip(*events, strict=True))
    column_UV = column_logprobs(_carve(side.first_logp_UK, unit_X, id_X, later_X), side.tables, marginal=True)
    minus_infinity = column_UV.new_full((len(column_UV), 1), -math.inf)
    parts = [column_UV, minus_infinity.index_put((unit_O, torch.zeros_like(unit_O)), unit_score_O)]
    if continuations is not None and (slots := continuations[0].num_slots):
        found, score_E = continuations
        empty_UE = column_UV.new_full((len(column_UV), slots), -math.inf)
        parts.append(empty_UE.index_put((found.unit_E, found.slot_E), score_E))
    return torch.cat(parts, -1)


def _carve(first_logp_UK: Tensor, unit_X: Tensor, id_X: Tensor, later_X: Tensor) -> Tensor:
    """Take events out of their first tokens: p(first) - sum of p(event), where p(event) = p(first) * exp(later).

    An event of one token (later = 0) takes all.
    """
    if len(unit_X) == 0:
        return first_logp_UK
    key_G, group_X = torch.unique(unit_X * first_logp_UK.shape[1] + id_X, return_inverse=True)
    taken_G = later_X.new_zeros(len(key_G)).index_add(0, group_X, later_X.exp())
    whole_G = torch.zeros_like(key_G).index_add(0, group_X, (later_X == 0).long()) > 0
    unit_G, id_G = key_G // first_logp_UK.shape[1], key_G % first_logp_UK.shape[1]
    left_G = first_logp_UK[unit_G, id_G] + _log_left(taken_G)
    return first_logp_UK.index_put((unit_G, id_G), left_G.masked_fill(whole_G, -math.inf))
