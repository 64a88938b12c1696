"""Draw: so many rows of a stream, the same ones in whatever order they come; its memory is that of the rows it keeps.

In: rows one by one, each with the digest of its prompt. Out: the `count` rows whose keys, hashes of seed and digest,
are smallest. A key is a property of the words, so rows with the same words meet, and one of them stays.
"""

from __future__ import annotations

import hashlib
import heapq
from typing import Generic, TypeVar

Row = TypeVar("Row")


class Draw(Generic[Row]):
    """count: how many rows to keep; None keeps all. seed: another one draws other rows.

    num_duplicates: rows whose words are those of a row that was kept when they came.
    """

    def __init__(self, count: int | None, seed: str) -> None:
        self.count, self.seed = count, seed
        self.num_duplicates = 0
        self._rows: dict[int, Row] = {}  # by key
        self._largest: list[int] = []  # a heap of negated keys

    def __len__(self) -> int:
        return len(self._rows)

    def key(self, digest: str) -> int:
        """A 64-bit number that orders rows at random."""
        return int.from_bytes(hashlib.blake2b(f"{self.seed}/{digest}".encode(), digest_size=8).digest())

    def wants(self, digest: str) -> bool:
        """Whether a row would be kept now; a row that is not wanted will not be wanted later. Counts duplicates."""
        # The bar only ever falls while rows come: what is above it now will be above it at the end.
        key = self.key(digest)
        if key in self._rows:
            self.num_duplicates += 1
            return False
        return self.count is None or len(self._rows) < self.count or (self.count > 0 and key < -self._largest[0])

    def add(self, digest: str, row: Row) -> None:
        """Keep a row that is wanted; the one with the largest key leaves when there are too many."""
        # The heap's top is the largest key that is kept, negated: the first to go.
        key = self.key(digest)
        self._rows[key] = row
        heapq.heappush(self._largest, -key)
        if self.count is not None and len(self._rows) > self.count:
            del self._rows[-heapq.heappop(self._largest)]

    def rows(self) -> list[Row]:
        """What was drawn, in the order of the keys: shuffled, the same way every time."""
        return [self._rows[key] for key in sorted(self._rows)]
