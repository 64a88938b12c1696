"""Paths as disjoint events: worked by hand, sliced, and near certainty."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from simct_pl.scoring.paths import PathRows, UnitPath, carve_paths
from simct_pl.scoring.side import SideChunk
from simct_pl.scoring.tables import Merge, SideTables

NONE = torch.empty(0, dtype=torch.int64)
TABLES = SideTables(torch.arange(4), Merge(NONE, NONE, NONE), Merge(NONE, NONE, NONE), torch.arange(4))

# Unit 0 is tokens (0, 1), unit 1 the token 2. Continuations of unit 0: (0, 2), beyond it (0, 2, 3), and (3) alone.
PATHS = [
    UnitPath(0, 0, (0, 2), 0),
    UnitPath(0, 1, (0, 2, 3), 1),
    UnitPath(0, 2, (3,), 2),
    UnitPath(0, 3, (0, 1), -1),
]
LATER = [0.4, 0.1, 1.0]  # p(later | first) of each continuation


def side_of(probs: list[list[float]], dtype: torch.dtype = torch.float64) -> SideChunk:
    """Rows: the two tokens of unit 0, the token of unit 1."""
    logits_NK = torch.tensor(probs, dtype=dtype).log()
    return SideChunk(logits_NK, torch.tensor([0, 1, 2]), torch.tensor([0, 0, 1]), torch.tensor([0, 2]), TABLES)


PROBS = [[0.5, 0.1, 0.1, 0.3], [0.2, 0.5, 0.2, 0.1], [0.25, 0.25, 0.25, 0.25]]


def carved(probs: list[list[float]] = PROBS, later: list[float] = LATER) -> tuple[Tensor, Tensor]:
    later_E = torch.tensor(later, dtype=torch.float64).log()
    first_UK, paths_UE = carve_paths(side_of(probs), PathRows.build(PATHS), later_E, 4)
    return first_UK.exp(), paths_UE.exp()


def test_masses_by_hand() -> None:
    first_UK, paths_UE = carved()
    # Of token 0: .5 less the unit's .5 * .5 and the .5 * .4 of (0, 2), which holds (0, 2, 3). Token 3 is a candidate.
    eps = torch.finfo(torch.float64).eps
    torch.testing.assert_close(first_UK[0], torch.tensor([0.05, 0.1, 0.1, 0.0], dtype=torch.float64))
    torch.testing.assert_close(first_UK[1], torch.full((4,), 0.25, dtype=torch.float64))
    # (0, 2) without (0, 2, 3): .5 * (.4 - .1).
    torch.testing.assert_close(paths_UE[0], torch.tensor([0.15, 0.05, 0.3, 0.25], dtype=torch.float64))
    assert paths_UE[1].tolist() == [0.0] * 4
    assert float(first_UK[0].sum() + paths_UE[0].sum()) == pytest.approx(1.0, abs=4 * eps)


def test_what_is_certain_to_rounding_leaves_something_and_no_nan() -> None:
    side = side_of([[1.0, 1e-30, 1e-30, 1e-30], [1e-30, 1.0, 1e-30, 1e-30], PROBS[2]], torch.float32)
    later_E = torch.tensor([0.0, -1e-9, 0.0]).requires_grad_()
    side.logits_NK.requires_grad_()
    first_UK, paths_UE = carve_paths(side, PathRows.build(PATHS), later_E, 4)
    kept = torch.cat([first_UK.flatten(), paths_UE.flatten()])
    kept = kept[kept > -math.inf]
    assert kept.isfinite().all()
    for gradient in torch.autograd.grad(kept.sum(), (side.logits_NK, later_E)):
        assert gradient.isfinite().all()


def test_a_continuation_that_a_model_rules_out_gives_no_nan() -> None:
    later_E = torch.tensor([-math.inf, -math.inf, 0.0], dtype=torch.float64).requires_grad_()
    first_UK, paths_UE = carve_paths(side_of(PROBS), PathRows.build(PATHS), later_E, 4)
    assert paths_UE[0, :2].exp().tolist() == [0.0, 0.0]
    (gradient,) = torch.autograd.grad(first_UK[0].logsumexp(-1), later_E)
    assert gradient.isfinite().all()


def test_slices_are_those_units_alone() -> None:
    paths = [path._replace(unit=unit) for unit in (1, 4) for path in PATHS]
    rows = PathRows.build(paths)
    for start, end, kept in ((0, 2, [1]), (2, 5, [4]), (0, 9, [1, 4]), (2, 4, [])):
        alone = PathRows.build([path._replace(unit=unit - start) for unit in kept for path in PATHS])
        found = rows.slice(start, end)
        for field in dataclasses.fields(PathRows):
            assert torch.equal(getattr(found, field.name), getattr(alone, field.name)), field.name
