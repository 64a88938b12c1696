"""Lists of (id, label) that positions share: written once, when a question is first asked, and pointed at from then on.

In: labels by id. Out: ListStore, which grows. Its entries are on the device that reads them, too, so that a strip of
units sends numbers of lists and no entry twice.
"""

from __future__ import annotations

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
    """Lists by number. What has been written stays as it is."""

    def __init__(self) -> None:
        self._entries = Growing(2, np.int32)
        self._offsets = Growing(None)
        self._offsets.extend(np.zeros(2, np.int64))
        self._copies: dict[torch.device, tuple[Tensor, int]] = {}

    @property
    def num_entries(self) -> int:
        return self._entries.size

    def add(self, labels: dict[int, int]) -> int:
        """The number of a new list, of id → label."""
        if not labels:
            return EMPTY
        self._entries.extend(np.array([*labels.items()], np.int32))
        self._offsets.extend(np.array([self.num_entries]))
        return self._offsets.size - 2

    def ids(self, number: int) -> np.ndarray:
        """Ids of one list."""
        start, end = self._offsets.rows[number : number + 2]
        return self._entries.rows[start:end, 0]

    @property
    def offsets(self) -> np.ndarray:
        """Where each list begins in the entries, and the last one ends, int64 [lists + 1]."""
        return self._offsets.rows

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
