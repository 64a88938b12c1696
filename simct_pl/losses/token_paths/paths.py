"""What each supervised student token is compared over, as flat arrays that the chunker slices.

In: the Categories of each token. Out: TokenPaths.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from simct_pl.losses.token_paths.categories import CLASSES, Categories


@dataclass(frozen=True)
class TokenPaths:
    """Categories of N student tokens, in order (int64, on one device).

    A label below num_labels is a class of VocabLinks, one from there on is the token's own; DROPPED is no category.
    base_N: label of all student ids that are not moved, or CLASSES, or DROPPED. own_N: label of the path's end.
    moved_token_E, moved_id_E, moved_label_E: student ids with another label, at token E.
    step_token_P, step_row_P, step_id_P: the teacher's rows along the path of each token, and the id that goes on.
    step_base_P: label of the ids that are not listed, or CLASSES, or DROPPED.
    listed_step_Q, listed_id_Q, listed_label_Q: teacher ids with another label, at step Q.
    based_token_B: tokens whose base is not CLASSES. whole_step_F: steps whose base is CLASSES, at most one a token.
    merged_token_J, merged_from_J, merged_to_J: labels that are one at token J.
    kinds_token_D, kinds_mask_D, kinds_step_G, kinds_mask_G: kinds of tokens that are dropped, unless they are moved or
        listed (VocabLinks.student_keep_MK), at token D of the student and step G of the teacher.
    num_labels: labels of classes and, at most, of a token together.
    """

    base_N: Tensor
    own_N: Tensor
    moved_token_E: Tensor
    moved_id_E: Tensor
    moved_label_E: Tensor
    step_token_P: Tensor
    step_row_P: Tensor
    step_id_P: Tensor
    step_base_P: Tensor
    listed_step_Q: Tensor
    listed_id_Q: Tensor
    listed_label_Q: Tensor
    merged_token_J: Tensor
    merged_from_J: Tensor
    merged_to_J: Tensor
    based_token_B: Tensor
    whole_step_F: Tensor
    kinds_token_D: Tensor
    kinds_mask_D: Tensor
    kinds_step_G: Tensor
    kinds_mask_G: Tensor
    num_labels: int

    def to(self, device: torch.device, non_blocking: bool = True) -> TokenPaths:
        moved: dict[str, Any] = {name: getattr(self, name).to(device, non_blocking=non_blocking) for name in _TENSORS}
        return TokenPaths(**moved, num_labels=self.num_labels)

    def with_rows(self, rows_X: Tensor) -> TokenPaths:
        """With positions in rows_X, ascending, in place of the teacher's rows."""
        return replace(self, step_row_P=torch.searchsorted(rows_X, self.step_row_P))

    def slice(self, start: int, end: int) -> TokenPaths:
        """Tokens start:end, counted from the slice's beginning. Best on the CPU."""
        tokens = slice(start, end)
        ranges = {"N": tokens} | {name[-1]: _range(getattr(self, name), start, end) for name in _BY_TOKEN}
        steps = ranges["P"]
        ranges |= {name[-1]: _range(getattr(self, name), steps.start, steps.stop) for name in _BY_STEP}
        parts: dict[str, Any] = {name: getattr(self, name)[ranges[name[-1]]] for name in _TENSORS}
        parts |= {name: parts[name] - start for name in _BY_TOKEN}
        parts |= {name: parts[name] - steps.start for name in _BY_STEP}
        return TokenPaths(**parts, num_labels=self.num_labels)


_TENSORS = [field.name for field in fields(TokenPaths) if field.name != "num_labels"]


_BY_TOKEN = ("moved_token_E", "step_token_P", "merged_token_J", "based_token_B", "kinds_token_D")
_BY_STEP = ("listed_step_Q", "whole_step_F", "kinds_step_G")


def _range(index: Tensor, start: int, end: int) -> slice:
    return slice(*torch.searchsorted(index, torch.tensor([start, end])).tolist())


class PathTable:
    """Grows the arrays of TokenPaths."""

    def __init__(self) -> None:
        self.num_own = 0
        self.columns: dict[str, list[int]] = {name: [] for name in _TENSORS}

    def add(
        self, categories: Categories, ids: Sequence[int], rows: Iterable[int], merged: list[tuple[int, int]]
    ) -> None:
        columns, token = self.columns, len(self.columns["base_N"])
        columns["base_N"].append(categories.base)
        columns["own_N"].append(categories.own)
        self.num_own = max(self.num_own, categories.num_own_labels)
        if categories.base != CLASSES:
            columns["based_token_B"].append(token)
        if categories.kinds:
            self._row(("kinds_token_D", token), ("kinds_mask_D", categories.kinds))
        for student, label in categories.moved.items():
            self._row(("moved_token_E", token), ("moved_id_E", student), ("moved_label_E", label))
        for one, other in merged:
            self._row(("merged_token_J", token), ("merged_from_J", one), ("merged_to_J", other))
        for step, on, row in zip(categories.steps, ids, rows, strict=True):
            number = len(columns["step_row_P"])
            if step.base == CLASSES:
                columns["whole_step_F"].append(number)
            if step.kinds:
                self._row(("kinds_step_G", number), ("kinds_mask_G", step.kinds))
            self._row(("step_token_P", token), ("step_row_P", row), ("step_id_P", on), ("step_base_P", step.base))
            for teacher, label in step.listed.items():
                if teacher != on:
                    self._row(("listed_step_Q", number), ("listed_id_Q", teacher), ("listed_label_Q", label))

    def _row(self, *values: tuple[str, int]) -> None:
        for name, value in values:
            self.columns[name].append(value)

    def finish(self, num_classes: int) -> TokenPaths:
        tensors: dict[str, Any] = {
            name: torch.tensor(column, dtype=torch.int64) for name, column in self.columns.items()
        }
        return TokenPaths(**tensors, num_labels=num_classes + self.num_own)
