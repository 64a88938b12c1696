"""A weighted sum of objectives, each of the same units: L = sum_i w_i * L_i."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

import torch
from typing_extensions import override

from simct_pl.errors import RecipeError
from simct_pl.losses.base import Objective, UnitChunk, UnitLosses
from simct_pl.losses.token_paths.path_builder import PathBuilder
from simct_pl.tokenization.pair import TokenizerPair


@dataclass(frozen=True)
class Weighted:
    """An objective and its weight.

    Raises:
        RecipeError: for a weight that is not above 0.
    """

    objective: Objective
    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.weight <= 0:
            raise RecipeError(f"A weight of the mixture is {self.weight}; expected more than 0.")


class MixtureLoss(Objective):
    """Several objectives at once. A unit is supervised if it is by any of them; the candidate mass is the first one's.

    Args:
        parts: objectives and weights.

    Raises:
        RecipeError: without any part.
    """

    def __init__(self, parts: list[Weighted]) -> None:
        if not parts:
            raise RecipeError("MixtureLoss has no parts; expected at least one objective.")
        self.parts = parts
        self.uses_prefixes = any(part.objective.uses_prefixes for part in parts)
        self.own_responses_only = any(part.objective.own_responses_only for part in parts)

    @override
    def prepare(self, pair: TokenizerPair) -> None:
        for part in self.parts:
            part.objective.prepare(pair)

    @property
    @override
    def path_builder(self) -> PathBuilder | None:  # type: ignore[override]
        builders = (part.objective.path_builder for part in self.parts)
        return next((builder for builder in builders if builder is not None), None)

    def __call__(self, chunk: UnitChunk) -> UnitLosses:
        found = [part.objective(chunk) for part in self.parts]
        loss_U = torch.stack([part.weight * one.loss_U for part, one in zip(self.parts, found, strict=True)]).sum(0)
        supervised_U = reduce(torch.logical_or, [one.supervised_U for one in found])
        return UnitLosses(loss_U, supervised_U, found[0].student_logmass_U, found[0].teacher_logmass_U)

    def describe(self) -> dict[str, object]:
        parts = [{**part.objective.describe(), "weight": part.weight} for part in self.parts]
        return {"objective": type(self).__name__, "parts": parts}
