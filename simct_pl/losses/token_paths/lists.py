"""Lists of (id, label) that positions share: written once, when a question is first asked, and pointed at from then on.

In: labels by id. Out: ListStore, which grows, and Lists, the few of them that a strip of units reads.
"""

from __future__ import annotations

from typing import Any

import numpy as np

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

    def lengths(self, list_R: np.ndarray) -> np.ndarray:
        """Entries of each list, int64 [R]."""
        offsets = self._offsets.rows
        return offsets[list_R + 1] - offsets[list_R]

    def ids(self, number: int) -> np.ndarray:
        """Ids of one list."""
        start, end = self._offsets.rows[number : number + 2]
        return self._entries.rows[start:end, 0]

    def gather(self, list_R: np.ndarray) -> np.ndarray:
        """(id, label) of each entry of some lists, one list after the other, int64 [entries, 2]."""
        starts_R, lengths_R = self._offsets.rows[list_R], self.lengths(list_R)
        place = np.arange(lengths_R.sum()) + np.repeat(starts_R - np.cumsum(lengths_R) + lengths_R, lengths_R)
        return self._entries.rows[place].astype(np.int64)
