"""Lists of (id, label) that positions share: written once, when a question is first asked, and pointed at from then on.

In: labels by id. Out: ListStore, which grows. Its entries are on the device that reads them, too, so that a strip of
units sends numbers of lists and no entry twice.
"""

from __future__ import annotations

import hashlib
import itertools
from typing import Any

import numpy as np
import torch
from torch import Tensor

EMPTY = 0  # the list without entries


class Growing:
    """A numpy array that grows at its end."""

    def __init__(self, width: int | None, dtype: Any = np.int64) -> None:
        self._rows = np.empty(1024 if width is None else (256, width), dtype)
        self.size = 0

    def extend(self, rows: np.ndarray) -> None:
        end = self.size + len(rows)
        if end > len(self._rows):
            grown = np.empty((max(end, 2 * len(self._rows)), *self._rows.shape[1:]), self._rows.dtype)
            grown[: self.size] = self.rows
            self._rows = grown
        self._rows[self.size : end] = rows
        self.size = end

    @property
    def rows(self) -> np.ndarray:
        return self._rows[: self.size]


class ListStore:
    """Lists by number, each sorted by id. What has been written stays as it is, and equal lists are one."""

    def __init__(self) -> None:
        self._entries = Growing(2, np.int32)
        self._offsets = Growing(None)
        self._offsets.extend(np.zeros(2, np.int64))
        self._numbers: dict[bytes, int] = {}
        self._copies: dict[torch.device, tuple[Tensor, int]] = {}

    @classmethod
    def of(cls, entries_E2: np.ndarray, offsets: np.ndarray) -> ListStore:
        """Lists that were kept: what `rows` and `offsets` were."""
        found = cls()
        for start, end in itertools.pairwise(offsets[1:].tolist()):
            found.add_sorted(entries_E2[start:end])
        return found

    @property
    def num_entries(self) -> int:
        return self._entries.size

    @property
    def rows(self) -> np.ndarray:
        """(id, label) of every entry, int32 [entries, 2]."""
        return self._entries.rows

    @property
    def offsets(self) -> np.ndarray:
        """Where each list begins in the entries, and the last one ends, int64 [lists + 1]."""
        return self._offsets.rows

    def add(self, labels: dict[int, int]) -> int:
        """The number of the list of id → label."""
        entries_E2 = np.array([*labels.items()], np.int32).reshape(-1, 2)
        return self.add_sorted(entries_E2[np.argsort(entries_E2[:, 0])])

    def add_sorted(self, entries_E2: np.ndarray) -> int:
        """The same of rows of (id, label), int32, sorted by id."""
        if not len(entries_E2):
            return EMPTY
        digest = hashlib.blake2b(entries_E2.tobytes(), digest_size=16).digest()
        if digest not in self._numbers:
            self._numbers[digest] = self._offsets.size - 1
            self._entries.extend(entries_E2)
            self._offsets.extend(np.array([self.num_entries]))
        return self._numbers[digest]

    def read(self, number: int) -> np.ndarray:
        """(id, label) of one list, int32 [E, 2]."""
        start, end = self.offsets[number : number + 2]
        return self.rows[start:end]

    def labels(self, list_Q: np.ndarray, id_Q: np.ndarray, default: int) -> np.ndarray:
        """What lists say of one id each, int64 [Q]; `default` where it is not listed."""
        low_Q, end_Q, ids_E = self.offsets[list_Q], self.offsets[list_Q + 1], self.rows[:, 0]
        high_Q = end_Q.copy()
        open_R = np.flatnonzero(low_Q < high_Q)
        while len(open_R):  # half of each range is left
            middle_R = (low_Q[open_R] + high_Q[open_R]) // 2
            is_behind_R = ids_E[middle_R] < id_Q[open_R]
            low_Q[open_R[is_behind_R]] = middle_R[is_behind_R] + 1
            high_Q[open_R[~is_behind_R]] = middle_R[~is_behind_R]
            open_R = open_R[low_Q[open_R] < high_Q[open_R]]
        labels_Q = np.full(len(list_Q), default, np.int64)
        place_R = np.flatnonzero(low_Q < end_Q)
        entries_R2 = self.rows[low_Q[place_R]]
        is_listed_R = entries_R2[:, 0] == id_Q[place_R]
        labels_Q[place_R[is_listed_R]] = entries_R2[is_listed_R, 1]
        return labels_Q

    def entries(self, device: torch.device) -> Tensor:
        """(id, label) of every entry, int32 [entries, 2], or more rows; what was added since is copied there."""
        if device.type == "cpu":
            return torch.from_numpy(self._entries.rows)
        rows = self._entries.rows  # once: another thread may add lists meanwhile
        known, copied = self._copies.get(device, (torch.empty(0, 2, dtype=torch.int32, device=device), 0))
        if len(known) < len(rows):
            grown = torch.empty(2 * len(rows), 2, dtype=torch.int32, device=device)
            grown[:copied] = known[:copied]
            known = grown
        if copied < len(rows):
            new = torch.from_numpy(rows[copied:])
            known[copied : len(rows)] = new.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else new
            self._copies[device] = known, len(rows)
        return known
