"""What each supervised student token is compared over.

In: the answers to each token's question. Out: TokenPaths, small arrays that the chunker slices and that point at shared
lists; of a strip, PathArrays, in which the lists are written out on the device that reads them.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from simct_pl.losses.token_paths.categories import CLASSES
from simct_pl.losses.token_paths.lists import ListStore
from simct_pl.losses.token_paths.neighbours import Side
from simct_pl.losses.token_paths.shift import ShiftStore


@dataclass(frozen=True)
class TokenPaths:
    """Categories of N student tokens, in order (int64, on the CPU).

    A label below num_classes is a class of VocabLinks, one from there on is the token's own; DROPPED is no category.
    base_N: label of all student ids that are not moved, or CLASSES, or DROPPED. kinds_N: those whose ids are dropped
        unless they are moved (VocabLinks.student_keep_MK). moved_list_N2: lists of the ids with another label.
    own_N: label of the path's end. num_own_N: how many labels are the token's own.
    step_token_P, step_row_P, step_id_P: the teacher's rows along the path of each token, and the id that goes on.
    step_base_P, step_kinds_P, step_list_P: as for the student's ids.
    merged_token_J, merged_from_J, merged_to_J: labels that are one at token J.
    shift_N, step_shift_P: which of `shifts` has the labels of ids in place of the classes, or -1.
    lists: what the lists hold. num_classes: labels of classes. num_labels: with those, at most, of a token.
    """

    base_N: Tensor
    own_N: Tensor
    num_own_N: Tensor
    kinds_N: Tensor
    moved_list_N2: Tensor
    step_token_P: Tensor
    step_row_P: Tensor
    step_id_P: Tensor
    step_base_P: Tensor
    step_kinds_P: Tensor
    step_list_P: Tensor
    merged_token_J: Tensor
    merged_from_J: Tensor
    merged_to_J: Tensor
    shift_N: Tensor
    step_shift_P: Tensor
    lists: ListStore
    shifts: ShiftStore
    num_classes: int
    num_labels: int

    def with_rows(self, rows_X: Tensor) -> TokenPaths:
        """With positions in rows_X, ascending, in place of the teacher's rows."""
        return replace(self, step_row_P=torch.searchsorted(rows_X, self.step_row_P))

    def slice(self, start: int, end: int) -> TokenPaths:
        """Tokens start:end, counted from the slice's beginning."""
        ranges = {"N": slice(start, end)} | {name[-1]: _range(getattr(self, name), start, end) for name in _BY_TOKEN}
        parts: dict[str, Any] = {name: getattr(self, name)[ranges[_axis(name)]] for name in _TENSORS}
        parts |= {name: parts[name] - start for name in _BY_TOKEN}
        return replace(self, **parts)

    def on(self, device: torch.device) -> PathArrays:
        """Written out; all that is sent goes in one piece, and nothing on the device is waited for."""
        list_R = torch.cat([self.moved_list_N2.flatten(), self.step_list_P])
        offsets = torch.from_numpy(self.lists.offsets)
        start_R = offsets[list_R]
        length_R = offsets[list_R + 1] - start_R
        num_moved_lists = 2 * len(self.base_N)
        sizes = int(length_R[:num_moved_lists].sum()), int(length_R[num_moved_lists:].sum())
        whole_step_F = (self.step_base_P == CLASSES).nonzero().flatten()
        shifted = _groups(self.shift_N), _groups(self.step_shift_P[whole_step_F])
        arrays = {name: getattr(self, name) for name in _TENSORS if name not in _HOST_ONLY} | {
            "start_R": start_R,
            "length_R": length_R,
            "based_token_B": (self.base_N != CLASSES).nonzero().flatten(),
            "whole_step_F": whole_step_F,
            "kinds_token_D": self.kinds_N.nonzero().flatten(),
            "kinds_step_G": ((self.step_kinds_P != 0) & (self.step_base_P == CLASSES)).nonzero().flatten(),
        }
        arrays |= {f"shifted {side} {number}": rows for side in (0, 1) for number, rows in shifted[side].items()}
        whole = torch.cat([*arrays.values()])
        sent = whole.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else whole.to(device)
        found = dict(zip(arrays, sent.split([len(one) for one in arrays.values()]), strict=True))
        found["entries_I2"] = self.lists.entries(device)
        students, teachers = (
            [
                (found[f"shifted {place} {number}"], self.shifts.labels(number, side, device))
                for number in shifted[place]
            ]
            for place, side in enumerate(_SIDES)
        )
        return PathArrays.of(
            found,
            sizes,
            num_moved_lists,
            whole_rows_differ=bool((self.step_row_P[whole_step_F].diff() > 0).all()),
            num_classes=self.num_classes,
            num_labels=self.num_classes + (int(self.num_own_N.max()) if len(self.num_own_N) else 0),
            shifted_students=students,
            shifted_teachers=teachers,
        )


@dataclass(frozen=True)
class PathArrays:
    """TokenPaths with the lists written out, on the device of the logits.

    moved_token_E, moved_id_E, moved_label_E: student ids with another label than the base, at token E.
    listed_step_Q, listed_id_Q, listed_label_Q: teacher ids with another label, at step Q; the id that goes on may be
        one of them.
    based_token_B: tokens whose base is not CLASSES. whole_step_F: steps whose base is CLASSES, at most one a token.
    whole_rows_differ: no two of these steps read one row.
    kinds_token_D, kinds_mask_D, kinds_step_G, kinds_mask_G: where kinds of ids are dropped, and which; of steps, those
        whose base is CLASSES.
    shifted_students, shifted_teachers: (places in N, places in F, and the label of each id there) of each shift.
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
    whole_rows_differ: bool
    num_classes: int
    num_labels: int
    shifted_students: list[tuple[Tensor, Tensor]]
    shifted_teachers: list[tuple[Tensor, Tensor]]

    @classmethod
    def of(cls, found: dict[str, Tensor], sizes: tuple[int, int], num_moved_lists: int, **known: Any) -> PathArrays:
        """found: arrays of TokenPaths; the entries of all lists; where each of its own, first the student's, then the
        steps', begins in them and how long it is. sizes: entries of both, all told. known: the fields that are
        no arrays.
        """
        kept: dict[str, Any] = {f.name: found[f.name] for f in fields(cls) if f.name in found}
        written = []
        for size, of in zip(sizes, (slice(num_moved_lists), slice(num_moved_lists, None)), strict=True):
            row_I, place_I = _write_out(found["start_R"][of], found["length_R"][of], size)
            written.append((row_I, *found["entries_I2"][place_I].long().unbind(1)))
        (moved_list_E, moved_id_E, moved_label_E), (listed_step_Q, listed_id_Q, listed_label_Q) = written
        return cls(
            **kept,
            moved_token_E=moved_list_E // 2,
            moved_id_E=moved_id_E,
            moved_label_E=moved_label_E,
            listed_step_Q=listed_step_Q,
            listed_id_Q=listed_id_Q,
            listed_label_Q=listed_label_Q,
            kinds_mask_D=found["kinds_N"][found["kinds_token_D"]],
            kinds_mask_G=found["step_kinds_P"][found["kinds_step_G"]],
            **known,
        )

    def unused(self) -> Tensor:
        """Own labels that a token does not have, bool [N, num_labels - num_classes]."""
        own = torch.arange(self.num_labels - self.num_classes, device=self.num_own_N.device)
        return own >= self.num_own_N[:, None]


_TENSORS = [
    field.name for field in fields(TokenPaths) if field.name not in ("lists", "shifts", "num_classes", "num_labels")
]
_HOST_ONLY = ("moved_list_N2", "step_list_P", "shift_N", "step_shift_P")
_SIDES: tuple[Side, Side] = ("student", "teacher")
_BY_TOKEN = ("step_token_P", "merged_token_J")


def _axis(name: str) -> str:
    """N, P or J."""
    return name.rstrip("2")[-1]


def _groups(shift_N: Tensor) -> dict[int, Tensor]:
    """Shift → places that have it."""
    numbers = shift_N.unique().tolist() if len(shift_N) else []
    return {number: (shift_N == number).nonzero().flatten() for number in numbers if number >= 0}


def _range(index: Tensor, start: int, end: int) -> slice:
    return slice(*torch.searchsorted(index, torch.tensor([start, end])).tolist())


def _write_out(start_R: Tensor, length_R: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """(the range, the place) of every place in some ranges, int64 [size]; size: their lengths' sum."""
    row_I = torch.repeat_interleave(torch.arange(len(length_R), device=length_R.device), length_R, output_size=size)
    shift_R = start_R - length_R.cumsum(0) + length_R
    return row_I, torch.arange(size, device=length_R.device) + shift_R[row_I]
