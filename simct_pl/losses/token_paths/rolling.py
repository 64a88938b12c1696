"""Hashes of many ranges of a sequence at once: 64 bits, from running sums."""

from __future__ import annotations

import numpy as np

_BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2 ** 64
_INVERSE = pow(_BASE, -1, 2**64)


class RollingHash:
    """Of a sequence of integers. Sums and products wrap around on purpose."""

    def __init__(self, values_L: np.ndarray) -> None:
        powers_L, self._inverse_L = _powers(len(values_L) + 1)
        terms_L = mixed(values_L.astype(np.uint64) + np.uint64(1)) * powers_L[:-1]
        self._sums_L = np.concatenate([np.zeros(1, np.uint64), np.cumsum(terms_L, dtype=np.uint64)])

    def of(self, start_R: np.ndarray, end_R: np.ndarray) -> np.ndarray:
        """uint64 [R]: of the values start:end of each range; the same values have the same hash, wherever they lie."""
        return mixed((self._sums_L[end_R] - self._sums_L[start_R]) * self._inverse_L[start_R])


def combined(*parts_R: np.ndarray) -> np.ndarray:
    """One hash of several integers each, uint64 [R]."""
    found_R = np.zeros(len(parts_R[0]), np.uint64)
    for part_R in parts_R:
        found_R = mixed(found_R + np.uint64(_BASE) + part_R.astype(np.uint64))
    return found_R


def mixed(values_R: np.ndarray) -> np.ndarray:
    """Every bit of each result depends on every bit of its value (the finaliser of SplitMix64)."""
    values_R = (values_R ^ (values_R >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values_R = (values_R ^ (values_R >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values_R ^ (values_R >> np.uint64(31))


class HashSet:
    """Hashes, as bits: no false negatives, and false positives for less than a fiftieth of what is asked."""

    def __init__(self, hashes_R: np.ndarray) -> None:
        bits = max(10, int(np.ceil(np.log2(64 * max(len(hashes_R), 1)))))
        self._shift, self._bits_B = np.uint64(64 - bits), np.zeros(2 ** (bits - 3), np.uint8)
        place_R = hashes_R >> self._shift
        np.bitwise_or.at(self._bits_B, place_R >> np.uint64(3), _bit(place_R))

    def may_hold(self, hashes_R: np.ndarray) -> np.ndarray:
        """bool [R]."""
        place_R = hashes_R >> self._shift
        return (self._bits_B[place_R >> np.uint64(3)] & _bit(place_R)) > 0


def _bit(place_R: np.ndarray) -> np.ndarray:
    return np.left_shift(np.uint8(1), (place_R & np.uint64(7)).astype(np.uint8))


_known: list[np.ndarray] = []


def _powers(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Powers of the base and of its inverse, uint64 [count]; made once for the longest sequence so far."""
    if not _known or len(_known[0]) < count:
        _known[:] = [_powers_of(base, max(count, 1 << 16)) for base in (_BASE, _INVERSE)]
    return _known[0][:count], _known[1][:count]


def _powers_of(base: int, count: int) -> np.ndarray:
    factors = np.full(count, base, np.uint64)
    factors[0] = 1
    return np.cumprod(factors, dtype=np.uint64)
