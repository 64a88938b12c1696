"""Candidates that are paths of tokens: the realised unit and continuations off it, each path's mass counted once.

In: for each unit, the token paths of one model. Out: the log-probability of each path without its extensions among the
candidates, and of each first token without the paths that begin with it (docs/continuations.md, equations 1 and 2). A
path that extends another is carved out of it, so that what is left are disjoint events.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from simct_pl.scoring.side import SideChunk


class UnitPath(NamedTuple):
    """One candidate of one unit in one model's tokens. source: which continuation it is, or -1 for the unit itself."""

    unit: int
    slot: int
    ids: tuple[int, ...]
    source: int


@dataclass(frozen=True)
class PathRows:
    """Paths X of one side, sorted by unit, and the groups G of those that share a unit and a first token (all int64).

    unit_X, slot_X, first_X: unit, column among the path columns, first token. source_X: see UnitPath. parent_X: the
    longest other path of the unit that begins this one, or -1. group_X: group of a path without a parent, else -1.
    unit_G, first_G: unit and first token of a group. single_G: bool, one of its paths is that token alone.
    """

    unit_X: Tensor
    slot_X: Tensor
    first_X: Tensor
    source_X: Tensor
    parent_X: Tensor
    group_X: Tensor
    unit_G: Tensor
    first_G: Tensor
    single_G: Tensor

    @classmethod
    def build(cls, paths: Sequence[UnitPath]) -> PathRows:
        """paths: in order of units; of one unit, all different."""
        parents: list[int] = []
        groups: list[int] = []
        heads: list[tuple[int, int, bool]] = []
        for _, unit_paths in groupby(paths, key=lambda path: path.unit):
            _add_unit(list(unit_paths), parents, groups, heads)
        columns = ([p.unit for p in paths], [p.slot for p in paths], [p.ids[0] for p in paths])
        sources = [p.source for p in paths]
        unit_G, first_G, single_G = zip(*heads, strict=True) if heads else ((), (), ())
        numbers = [torch.tensor(c, dtype=torch.int64) for c in (*columns, sources, parents, groups, unit_G, first_G)]
        return cls(*[*numbers, torch.tensor(single_G, dtype=torch.bool)])

    def to(self, device: torch.device) -> PathRows:
        return PathRows(*(getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)))

    def slice(self, start: int, end: int) -> PathRows:
        """Units start:end, with paths, groups and units counted from the slice's beginning; sources stay."""
        edges = torch.tensor([start, end])
        x, g = (slice(*torch.searchsorted(units, edges).tolist()) for units in (self.unit_X, self.unit_G))
        parent_X, group_X = self.parent_X[x], self.group_X[x]
        return PathRows(
            self.unit_X[x] - start,
            self.slot_X[x],
            self.first_X[x],
            self.source_X[x],
            torch.where(parent_X < 0, parent_X, parent_X - x.start),
            torch.where(group_X < 0, group_X, group_X - g.start),
            self.unit_G[g] - start,
            self.first_G[g],
            self.single_G[g],
        )


def _add_unit(paths: list[UnitPath], parents: list[int], groups: list[int], heads: list[tuple[int, int, bool]]) -> None:
    """Append the parents and groups of one unit's paths."""
    base, group_of = len(parents), {}
    number = {path.ids: base + i for i, path in enumerate(paths)}
    assert len(number) == len(paths), "two candidates of a unit are the same tokens"
    for path in paths:
        prefixes = (path.ids[:length] for length in range(len(path.ids) - 1, 0, -1))
        parent = next((number[prefix] for prefix in prefixes if prefix in number), -1)
        parents.append(parent)
        if parent >= 0:
            groups.append(-1)
            continue
        if path.ids[0] not in group_of:
            group_of[path.ids[0]] = len(heads)
            heads.append((path.unit, path.ids[0], len(path.ids) == 1))
        groups.append(group_of[path.ids[0]])


@dataclass(frozen=True)
class PathPair:
    """Both sides' paths of the same candidates. num_slots: path columns of a unit, its own last."""

    student: PathRows
    teacher: PathRows
    num_slots: int

    def to(self, device: torch.device, non_blocking: bool = True) -> PathPair:
        return PathPair(self.student.to(device), self.teacher.to(device), self.num_slots)

    def slice(self, start: int, end: int) -> PathPair:
        return PathPair(self.student.slice(start, end), self.teacher.slice(start, end), self.num_slots)


def carve_paths(side: SideChunk, rows: PathRows, later_E: Tensor, num_slots: int) -> tuple[Tensor, Tensor]:
    """(log-probabilities of all ids at unit starts without the paths, [U, K]; of each unit's paths, [U, num_slots]).

    later_E: log p(later tokens | first token) of each continuation, by source. Differences are taken in float64: a path
    may be nearly all of its first token, and what is left is the small difference.
    """
    first_logp_UK = side.first_logp_UK
    later_X = _later_logprobs(side, rows, later_E).double()
    first_X = first_logp_UK[rows.unit_X, rows.first_X].double()
    child = torch.nonzero(rows.parent_X >= 0).squeeze(1)
    parent = rows.parent_X[child]
    # The clamp only keeps what a model rules out (-inf) from becoming -inf - -inf.
    gap = later_X[child] - later_X[parent].clamp_min(torch.finfo(later_X.dtype).min)
    nested_X = torch.zeros_like(later_X).index_add(0, parent, gap.exp())
    value_X = first_X + later_X + _log_left(nested_X, first_logp_UK.dtype)
    root = torch.nonzero(rows.group_X >= 0).squeeze(1)
    held_G = later_X.new_zeros(len(rows.unit_G)).index_add(0, rows.group_X[root], later_X[root].exp())
    left_G = first_logp_UK[rows.unit_G, rows.first_G].double() + _log_left(held_G, first_logp_UK.dtype)
    left_G = left_G.masked_fill(rows.single_G, -math.inf).to(first_logp_UK.dtype)
    carved_UK = first_logp_UK.index_put((rows.unit_G, rows.first_G), left_G)
    paths_UE = first_logp_UK.new_full((len(first_logp_UK), num_slots), -math.inf)
    return carved_UK, paths_UE.index_put((rows.unit_X, rows.slot_X), value_X.to(first_logp_UK.dtype))


def _later_logprobs(side: SideChunk, rows: PathRows, later_E: Tensor) -> Tensor:
    """log p(later tokens | first token) of each path: the unit's from its own rows, the others' from later_E."""
    unit_later_U = side.sum_by_unit(side.token_logp_N.index_fill(0, side.first_U, 0.0))
    off_path = torch.nonzero(rows.source_X >= 0).squeeze(1)
    given = later_E[rows.source_X[off_path]].to(unit_later_U.dtype)
    return unit_later_U[rows.unit_X].index_put((off_path,), given)


def _log_left(held: Tensor, dtype: torch.dtype) -> Tensor:
    """log(1 - held). What is certain to rounding leaves eps, not nothing."""
    return torch.log1p(-held.clamp_max(1 - torch.finfo(dtype).eps))
