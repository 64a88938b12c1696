"""Continuations off the sampled path: what else the student would have written at a unit's start, and what the teacher
thinks of that.

In: the student's states, and the tables of a pair. Out, in two steps: a plan (which tokens the student likes that the
teacher does not have, and how the teacher spells them), and, once the teacher has read those spellings, the rows that
the loss takes. A shared token needs none of this: both models score it anyway.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from simct_pl.errors import RecipeError
from simct_pl.scoring.heads import LMHead
from simct_pl.scoring.side import at_least_fp32
from simct_pl.scoring.tree import Branch
from simct_pl.scoring.units import UnitRows
from simct_pl.tokenization.pair import TokenizerPair
from simct_pl.tokenization.projection import spell_inside, spell_tokens

NO_PARENT, THE_UNIT = -1, -2


@dataclass(frozen=True)
class ContinuationRows:
    """Continuations of some units, sorted by unit (E of them; all int64 but the last).

    unit_E; slot_E: its number among those of its unit. student_id_E: the student's token. teacher_first_E: the first id
    of the teacher's spelling. teacher_rest_E: log-probability of the later ids of it, float. parent_E: the continuation
    (counted from the slice's beginning) whose spelling is the longest proper beginning of this one's; THE_UNIT if that
    is the realised unit's; NO_PARENT if there is none. unit_parent_U: the same of each realised unit's own spelling.
    """

    unit_E: Tensor
    slot_E: Tensor
    student_id_E: Tensor
    teacher_first_E: Tensor
    teacher_rest_E: Tensor
    parent_E: Tensor
    unit_parent_U: Tensor

    @property
    def num_slots(self) -> int:
        return int(self.slot_E.max()) + 1 if len(self.slot_E) else 0

    def slice(self, start: int, end: int) -> ContinuationRows:
        """Those of the units start:end, everything counted from the slice's beginning."""
        first, last = torch.searchsorted(self.unit_E, torch.tensor([start, end], device=self.unit_E.device)).tolist()
        parent_E, unit_parent_U = self.parent_E[first:last], self.unit_parent_U[start:end]
        return ContinuationRows(
            self.unit_E[first:last] - start,
            self.slot_E[first:last],
            self.student_id_E[first:last],
            self.teacher_first_E[first:last],
            self.teacher_rest_E[first:last],
            torch.where(parent_E >= 0, parent_E - first, parent_E),
            torch.where(unit_parent_U >= 0, unit_parent_U - first, unit_parent_U),
        )

    def to(self, device: torch.device) -> ContinuationRows:
        return ContinuationRows(**{name: tensor.to(device) for name, tensor in vars(self).items()})


@dataclass(frozen=True)
class ContinuationPlan:
    """What the teacher has to read. branches: of each response. spellings: the teacher's ids of each continuation."""

    unit_E: np.ndarray
    student_id_E: np.ndarray
    spellings: list[tuple[int, ...]]
    branches: list[list[Branch]]
    rows: UnitRows

    @torch.no_grad()
    def score(self, head: LMHead, branch_hidden_XH: Tensor, chunk_tokens: int) -> ContinuationRows:
        """With the log-probabilities of the spellings, whose tokens but the last the teacher has read."""
        targets = [token for spelling in self.spellings for token in spelling[1:]]
        target_X = torch.tensor(targets, dtype=torch.int64, device=branch_hidden_XH.device)
        logps = [
            at_least_fp32(head(hidden)).log_softmax(-1).gather(-1, ids[:, None]).squeeze(-1)
            for hidden, ids in zip(branch_hidden_XH.split(chunk_tokens), target_X.split(chunk_tokens), strict=True)
        ]
        logp_X = torch.cat(logps) if logps else branch_hidden_XH.new_zeros(0, dtype=torch.float32)
        owner_X = np.repeat(np.arange(len(self.spellings)), [len(spelling) - 1 for spelling in self.spellings])
        rest_E = logp_X.new_zeros(len(self.spellings)).index_add_(0, torch.as_tensor(owner_X).to(logp_X.device), logp_X)
        parent_E, unit_parent_U = self._parents()
        return ContinuationRows(
            torch.from_numpy(self.unit_E),
            torch.from_numpy(_places(self.unit_E)),
            torch.from_numpy(self.student_id_E),
            torch.tensor([spelling[0] for spelling in self.spellings], dtype=torch.int64),
            rest_E.cpu(),
            torch.from_numpy(parent_E),
            torch.from_numpy(unit_parent_U),
        )

    def _parents(self) -> tuple[np.ndarray, np.ndarray]:
        """Which spelling begins which, unit by unit."""
        parent_E = np.full(len(self.unit_E), NO_PARENT)
        unit_parent_U = np.full(self.rows.num_units, NO_PARENT)
        for unit in np.unique(self.unit_E).tolist():
            own = np.flatnonzero(self.unit_E == unit).tolist()
            known = {index: self.spellings[index] for index in own}
            if int(self.rows.column_U[unit]) < 0:
                known[THE_UNIT] = self._unit_ids(unit)
            for index, ids in known.items():
                parent = _longest_beginning(ids, known)
                if index == THE_UNIT:
                    unit_parent_U[unit] = parent
                else:
                    parent_E[index] = parent
        return parent_E, unit_parent_U

    def _unit_ids(self, unit: int) -> tuple[int, ...]:
        first_U = self.rows.teacher_first_U
        end = int(first_U[unit + 1]) if unit + 1 < len(first_U) else len(self.rows.teacher_ids_M)
        return tuple(self.rows.teacher_ids_M[int(first_U[unit]) : end].tolist())


def _longest_beginning(ids: tuple[int, ...], known: dict[int, tuple[int, ...]]) -> int:
    begin = [index for index, other in known.items() if len(other) < len(ids) and ids[: len(other)] == other]
    return max(begin, key=lambda index: len(known[index]), default=NO_PARENT)


def _places(unit_E: np.ndarray) -> np.ndarray:
    """0, 1, 2 … within each run of equal units."""
    index_E = np.arange(len(unit_E))
    begins_E = np.append(True, unit_E[1:] != unit_E[:-1]) if len(unit_E) else np.zeros(0, bool)
    return index_E - np.maximum.accumulate(np.where(begins_E, index_E, 0))


class Proposer:
    """Chooses the student's likeliest tokens that the teacher does not have.

    Args:
        pair: the tokenizers. k: at most so many a unit. min_probability: of a token, at the unit's start.

    spelling_of: student id → the teacher's ids. num_unspelt: plain tokens that can never be proposed, because they are
    no text of their own or the teacher rewrites it.
    """

    def __init__(self, pair: TokenizerPair, k: int, min_probability: float) -> None:
        self.k, self.min_probability = k, min_probability
        shared = pair.shared_vocab
        pieces = spell_tokens(shared, lambda texts: spell_inside(pair.teacher, texts))
        # A token that is shared is scored anyway; one that the teacher cannot spell cannot be.
        self.spelling_of = {source: tuple(ids) for source, ids in pieces.items() if shared.student_columns[source] < 0}
        self.spelling_of = {source: ids for source, ids in self.spelling_of.items() if len(ids) > 1}
        is_plain_K = shared.student.is_mapped_V & ~shared.student.is_special_V
        self.num_unspelt = len(set(np.flatnonzero(is_plain_K).tolist()) - pieces.keys())
        self._ids_Q = torch.tensor(sorted(self.spelling_of), dtype=torch.int64)

    @torch.no_grad()
    def plan(
        self, hidden_NH: Tensor, head: LMHead, rows: UnitRows, teacher_lengths: Sequence[int], chunk_tokens: int
    ) -> ContinuationPlan:
        """hidden_NH: the student's states, as UnitRows counts them. teacher_lengths: tokens of each response."""
        units, ids = [], []
        ids_Q = self._ids_Q.to(hidden_NH.device)
        first_row_U = rows.student_rows_N[rows.student_first_U]
        realised_U = rows.student_ids_N[rows.student_first_U]
        for start in range(0, rows.num_units if len(ids_Q) else 0, chunk_tokens):
            part = slice(start, start + chunk_tokens)
            logp_UK = at_least_fp32(head(hidden_NH[first_row_U[part].to(hidden_NH.device)])).log_softmax(-1)
            # The unit's own first token is a candidate already, alone or with what follows it.
            logp_UQ = logp_UK.index_select(1, ids_Q)
            logp_UQ = logp_UQ.masked_fill(realised_U[part].to(ids_Q.device)[:, None] == ids_Q, -torch.inf)
            top_Uk, place_Uk = logp_UQ.topk(min(self.k, len(ids_Q)), dim=-1)
            unit_E, slot_E = (top_Uk.exp() >= self.min_probability).nonzero(as_tuple=True)
            units.append((unit_E + start).cpu().numpy())
            ids.append(ids_Q[place_Uk[unit_E, slot_E]].cpu().numpy())
        unit_E = np.concatenate([np.empty(0, np.int64), *units])
        student_id_E = np.concatenate([np.empty(0, np.int64), *ids])
        return self._planned(unit_E, student_id_E, rows, teacher_lengths)

    def _planned(
        self, unit_E: np.ndarray, student_id_E: np.ndarray, rows: UnitRows, teacher_lengths: Sequence[int]
    ) -> ContinuationPlan:
        spellings = [self.spelling_of[int(token)] for token in student_id_E]
        begins = np.concatenate([[0], np.cumsum(teacher_lengths)])
        row_U = rows.teacher_rows_M[rows.teacher_first_U].numpy()
        row_E = row_U[unit_E]
        response_E = np.searchsorted(begins, row_E, "right") - 1
        branches: list[list[Branch]] = [[] for _ in teacher_lengths]
        for response, row, spelling in zip(response_E.tolist(), row_E.tolist(), spellings, strict=True):
            branches[response].append(Branch(row - int(begins[response]), spelling[:-1]))
        return ContinuationPlan(unit_E, student_id_E, spellings, branches, rows)


def check_proposals(k: int, min_probability: float) -> None:
    """Raise a RecipeError for numbers that propose nothing or everything."""
    if k < 1:
        raise RecipeError(f"k is {k}; expected at least 1 continuation a unit.")
    if not 0 < min_probability < 1:
        raise RecipeError(f"min_probability is {min_probability}; expected a number between 0 and 1.")
