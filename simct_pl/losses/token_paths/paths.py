"""What each supervised student token is compared over, as flat arrays that the chunker slices.

In: the Categories of each token. Out: TokenPaths.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from simct_pl.losses.token_paths.categories import CLASSES, Categories, Step
from simct_pl.losses.token_paths.shifts import Shift


@dataclass(frozen=True)
class TokenPaths:
    """Categories of N student tokens, in order (int64, on one device).

    A label below num_labels is a class of VocabLinks, one from there on is the token's own; DROPPED is no category.
    base_N: label of all student ids that are not moved, or CLASSES, or DROPPED. own_N: label of the
        path's end. num_own_N: how many labels are the token's own.
    moved_token_E, moved_id_E, moved_label_E: student ids with another label, at token E.
    step_token_P, step_row_P, step_id_P: the teacher's rows along the path of each token, and the id that goes on.
    step_base_P: label of the ids that are not listed, or CLASSES, or DROPPED.
    listed_step_Q, listed_id_Q, listed_label_Q: teacher ids with another label, at step Q.
    based_token_B: tokens whose base is not CLASSES. whole_step_F: steps whose base is CLASSES, at most one a token.
    merged_token_J, merged_from_J, merged_to_J: labels that are one at token J.
    kinds_token_D, kinds_mask_D, kinds_step_G, kinds_mask_G: kinds of tokens that are dropped, unless they are moved or
        listed (VocabLinks.student_keep_MK), at token D of the student and step G of the teacher.
    shift_N, step_shift_P: which of `shifts` has the labels of ids in place of the classes, or -1.
    num_classes: labels of classes. num_labels: with those, at most, of a token.
    """

    base_N: Tensor
    own_N: Tensor
    num_own_N: Tensor
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
    shift_N: Tensor
    step_shift_P: Tensor
    num_classes: int
    num_labels: int
    shifts: tuple[Shift, ...] = ()

    def unused(self) -> Tensor:
        """Own labels that a token does not have, bool [N, num_labels - num_classes]."""
        own = torch.arange(self.num_labels - self.num_classes, device=self.num_own_N.device)
        return own >= self.num_own_N[:, None]

    def to(self, device: torch.device, non_blocking: bool = True) -> TokenPaths:
        moved: dict[str, Any] = {name: getattr(self, name).to(device, non_blocking=non_blocking) for name in _TENSORS}
        return TokenPaths(**moved, num_classes=self.num_classes, num_labels=self.num_labels, shifts=self.shifts)

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
        return TokenPaths(**parts, num_classes=self.num_classes, num_labels=self.num_labels, shifts=self.shifts)


_TENSORS = [field.name for field in fields(TokenPaths) if field.name not in ("num_classes", "num_labels", "shifts")]


_BY_TOKEN = ("moved_token_E", "step_token_P", "merged_token_J", "based_token_B", "kinds_token_D")
_BY_STEP = ("listed_step_Q", "whole_step_F", "kinds_step_G")


def _range(index: Tensor, start: int, end: int) -> slice:
    return slice(*torch.searchsorted(index, torch.tensor([start, end])).tolist())


class PathTable:
    """Grows the arrays of TokenPaths, a token at a time."""

    def __init__(self) -> None:
        self.num_own = self.num_tokens = self.num_steps = 0
        self._parts: dict[str, list[np.ndarray]] = {name: [] for name in _TENSORS}
        self._numbers: dict[str, list[int]] = {name: [] for name in _TENSORS}
        self._shifts: dict[int, tuple[int, Shift]] = {}

    def add(
        self, categories: Categories, ids: Sequence[int], rows: Iterable[int], merged: list[tuple[int, int]]
    ) -> None:
        """A token's categories; ids: the path's tokens, rows: where the teacher predicts them."""
        token, self.num_tokens = self.num_tokens, self.num_tokens + 1
        self.num_own = max(self.num_own, categories.num_own_labels)
        self._row(base_N=categories.base, own_N=categories.own, num_own_N=categories.num_own_labels)
        self._row(shift_N=self._shift(categories.shift))
        if categories.base != CLASSES:
            self._row(based_token_B=token)
        if categories.kinds:
            self._row(kinds_token_D=token, kinds_mask_D=categories.kinds)
        self._labels("moved_token_E", "moved_id_E", "moved_label_E", token, categories.moved_arrays)
        for one, other in merged:
            self._row(merged_token_J=token, merged_from_J=one, merged_to_J=other)
        for step, on, row in zip(categories.steps, ids, rows, strict=True):
            self._step(step, token, on, row)

    def _step(self, step: Step, token: int, on: int, row: int) -> None:
        number, self.num_steps = self.num_steps, self.num_steps + 1
        self._row(step_token_P=token, step_row_P=row, step_id_P=on, step_base_P=step.base)
        self._row(step_shift_P=self._shift(step.shift))
        if step.base == CLASSES:
            self._row(whole_step_F=number)
        if step.kinds:
            self._row(kinds_step_G=number, kinds_mask_G=step.kinds)
        listed_ids, labels = step.arrays
        if on in step.listed:
            is_other = listed_ids != on
            listed_ids, labels = listed_ids[is_other], labels[is_other]
        self._labels("listed_step_Q", "listed_id_Q", "listed_label_Q", number, (listed_ids, labels))

    def _shift(self, shift: Shift | None) -> int:
        return -1 if shift is None else self._shifts.setdefault(id(shift), (len(self._shifts), shift))[0]

    def _row(self, **values: int) -> None:
        for name, value in values.items():
            self._numbers[name].append(value)

    def _labels(self, index: str, ids: str, labels: str, of: int, arrays: tuple[np.ndarray, np.ndarray]) -> None:
        if len(arrays[0]):
            self._parts[index].append(np.full(len(arrays[0]), of))
            self._parts[ids].append(arrays[0])
            self._parts[labels].append(arrays[1])

    def finish(self, num_classes: int) -> TokenPaths:
        tensors: dict[str, Any] = {}
        for name in _TENSORS:
            parts = [*self._parts[name], np.array(self._numbers[name], np.int64)]
            tensors[name] = torch.from_numpy(np.concatenate(parts))
        shifts = tuple(shift for _, shift in self._shifts.values())
        return TokenPaths(**tensors, num_classes=num_classes, num_labels=num_classes + self.num_own, shifts=shifts)
