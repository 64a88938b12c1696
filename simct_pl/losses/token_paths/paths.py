"""What each supervised student token is compared over.

In: the answers to each token's question. Out: TokenPaths, small arrays that the chunker slices and that point at shared
lists; of a strip, PathArrays, in which the lists are written out on the device that reads them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from simct_pl.losses.parcel import Parcel
from simct_pl.losses.token_paths.categories import CLASSES, DROPPED
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
        parcel = Parcel()
        received = self.post(parcel)
        parcel.send(device)
        return received(device)

    def post(self, parcel: Parcel) -> Callable[[torch.device], PathArrays]:
        """Put all that a device needs into a parcel; call what is returned when it has been sent there."""
        num_labels = self.num_classes + (int(self.num_own_N.max()) if len(self.num_own_N) else 0)
        lists = _ListRanges.of(self)
        whole_step_F = (self.step_base_P == CLASSES).nonzero().flatten()
        shifted = _groups(self.shift_N), _groups(self.step_shift_P[whole_step_F])
        arrays = {name: getattr(self, name) for name in _SENT} | lists.arrays
        arrays |= _places(self, whole_step_F, num_labels)
        arrays |= {f"shifted {side} {number}": rows for side in (0, 1) for number, rows in shifted[side].items()}
        posted = parcel.add(arrays)
        known: dict[str, Any] = {
            "whole_rows_differ": bool((self.step_row_P[whole_step_F].diff() > 0).all()),
            "num_classes": self.num_classes,
            "num_labels": num_labels,
        }

        def received(device: torch.device) -> PathArrays:
            found = posted()
            students, teachers = (
                [
                    (found[f"shifted {place} {number}"], self.shifts.labels(number, side, device))
                    for number in shifted[place]
                ]
                for place, side in enumerate(_SIDES)
            )
            written: dict[str, Any] = {**lists.write_out(found, self.lists.entries(device))}
            kept: dict[str, Any] = {f.name: found[f.name] for f in fields(PathArrays) if f.name in found}
            return PathArrays(**kept, **written, **known, shifted_students=students, shifted_teachers=teachers)

        return received


@dataclass(frozen=True)
class PathArrays:
    """TokenPaths with the lists written out, on the device of the logits. Places count in a flat [tokens x num_labels];
    what goes there is no label, and adds nothing, where `is_label` says so.

    moved_token_E, moved_id_E, moved_label_E: student ids with another label than the base, at token E.
    listed_step_Q, listed_id_Q, listed_label_Q: teacher ids with another label, at step Q; the id that goes on may be
        one of them.
    num_labels_N: how many labels each token has.
    based_token_B, base_place_B, base_is_label_B: tokens whose base is not CLASSES, and where it is.
    step_first_P: the first step of each step's token. step_is_whole_P: its base is CLASSES. step_is_front_P: it is of
        the token before the position. step_place_P: where its token's labels begin.
    end_from_V, end_place_V: which of the steps, followed by the tokens, have a label of their own for what leaves the
        path there, or follows it to its end; and where.
    whole_step_F: steps whose base is CLASSES, at most one a token. whole_token_F, whole_row_F: theirs. own_row_N: the
        row of each token's whole step, or another one of its own. whole_rows_differ: no two of these steps read one
        row.
    merged_from_J, merged_to_J: places; merged_is_label_J.
    kinds_token_D, kinds_mask_D, kinds_step_G, kinds_mask_G: where kinds of ids are dropped, and which; of steps, those
        whose base is CLASSES.
    shifted_students, shifted_teachers: (places in N, places in F, and the label of each id there) of each shift.
    """

    num_own_N: Tensor
    num_labels_N: Tensor
    moved_token_E: Tensor
    moved_id_E: Tensor
    moved_label_E: Tensor
    step_token_P: Tensor
    step_row_P: Tensor
    step_id_P: Tensor
    step_first_P: Tensor
    step_place_P: Tensor
    step_is_whole_P: Tensor
    step_is_front_P: Tensor
    end_from_V: Tensor
    end_place_V: Tensor
    listed_step_Q: Tensor
    listed_id_Q: Tensor
    listed_label_Q: Tensor
    merged_from_J: Tensor
    merged_to_J: Tensor
    merged_is_label_J: Tensor
    based_token_B: Tensor
    base_place_B: Tensor
    base_is_label_B: Tensor
    whole_step_F: Tensor
    whole_token_F: Tensor
    whole_row_F: Tensor
    own_row_N: Tensor
    kinds_token_D: Tensor
    kinds_mask_D: Tensor
    kinds_step_G: Tensor
    kinds_mask_G: Tensor
    whole_rows_differ: bool
    num_classes: int
    num_labels: int
    shifted_students: list[tuple[Tensor, Tensor]]
    shifted_teachers: list[tuple[Tensor, Tensor]]

    @property
    def num_tokens(self) -> int:
        return len(self.num_own_N)

    def unused(self) -> Tensor:
        """Own labels that a token does not have, bool [N, num_labels - num_classes]."""
        own = torch.arange(self.num_labels - self.num_classes, device=self.num_own_N.device)
        return own >= self.num_own_N[:, None]


def _places(paths: TokenPaths, whole_step_F: Tensor, num_labels: int) -> dict[str, Tensor]:
    """What PathArrays knows of positions: all of it is counted on the host, where that costs no kernel."""
    token_P, base_P, base_N = paths.step_token_P, paths.step_base_P, paths.base_N
    token_N = torch.arange(len(base_N))
    based_B = (base_N != CLASSES).nonzero().flatten()
    token_F, row_F = token_P[whole_step_F], paths.step_row_P[whole_step_F]
    own_row_N = torch.zeros_like(base_N).index_copy_(0, token_P, paths.step_row_P).index_copy_(0, token_F, row_F)
    end_label_I, end_token_I = torch.cat([base_P, paths.own_N]), torch.cat([token_P, token_N])
    end_V = (end_label_I >= 0).nonzero().flatten()
    kinds_D = paths.kinds_N.nonzero().flatten()
    kinds_G = ((paths.step_kinds_P != 0) & (base_P == CLASSES)).nonzero().flatten()
    start_J = paths.merged_token_J * num_labels
    return {
        "num_labels_N": paths.num_classes + paths.num_own_N,
        "step_first_P": torch.searchsorted(token_P, token_P),
        "step_place_P": token_P * num_labels,
        "step_is_whole_P": base_P == CLASSES,
        "step_is_front_P": (base_P == DROPPED) & (base_N[token_P] == CLASSES),
        "end_from_V": end_V,
        "end_place_V": end_token_I[end_V] * num_labels + end_label_I[end_V],
        "merged_from_J": start_J + paths.merged_from_J,
        "merged_to_J": start_J + paths.merged_to_J.clamp_min(0),
        "merged_is_label_J": paths.merged_to_J >= 0,
        "based_token_B": based_B,
        "base_place_B": based_B * num_labels + base_N[based_B].clamp_min(0),
        "base_is_label_B": base_N[based_B] >= 0,
        "whole_step_F": whole_step_F,
        "whole_token_F": token_F,
        "whole_row_F": row_F,
        "own_row_N": own_row_N,
        "kinds_token_D": kinds_D,
        "kinds_mask_D": paths.kinds_N[kinds_D],
        "kinds_step_G": kinds_G,
        "kinds_mask_G": paths.step_kinds_P[kinds_G],
    }


@dataclass(frozen=True)
class _ListRanges:
    """Where the lists of some paths lie among all entries. sizes: entries of the students' and of the steps' lists."""

    arrays: dict[str, Tensor]
    num_moved_lists: int
    sizes: tuple[int, int]

    @classmethod
    def of(cls, paths: TokenPaths) -> _ListRanges:
        list_R = torch.cat([paths.moved_list_N2.flatten(), paths.step_list_P])
        offsets = torch.from_numpy(paths.lists.offsets)
        start_R = offsets[list_R]
        length_R = offsets[list_R + 1] - start_R
        end_R = length_R.cumsum(0)
        num_moved_lists = paths.moved_list_N2.numel()
        num_moved, num_all = (int(end_R[n - 1]) if n else 0 for n in (num_moved_lists, len(list_R)))
        arrays = {"list_length_R": length_R, "list_shift_R": start_R - end_R + length_R}
        return cls(arrays, num_moved_lists, (num_moved, num_all - num_moved))

    def write_out(self, found: dict[str, Tensor], entries_I2: Tensor) -> dict[str, Tensor]:
        """Every entry of every range, and whose it is."""
        range_I = torch.repeat_interleave(found["list_length_R"], output_size=sum(self.sizes))
        place_I = torch.arange(len(range_I), device=range_I.device).add_(found["list_shift_R"][range_I])
        id_I, label_I = entries_I2[place_I].long().unbind(1)
        (range_E, range_Q), (id_E, id_Q), (label_E, label_Q) = (
            one.split(self.sizes) for one in (range_I, id_I, label_I)
        )
        return {
            "moved_token_E": range_E // 2,
            "moved_id_E": id_E,
            "moved_label_E": label_E,
            "listed_step_Q": range_Q - self.num_moved_lists,
            "listed_id_Q": id_Q,
            "listed_label_Q": label_Q,
        }


_TENSORS = [
    field.name for field in fields(TokenPaths) if field.name not in ("lists", "shifts", "num_classes", "num_labels")
]
_SENT = ("num_own_N", "step_token_P", "step_row_P", "step_id_P")
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
