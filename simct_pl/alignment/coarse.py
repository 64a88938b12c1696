"""Coarse partitions, baselines of arXiv 2605.07711: minimal units merged, or left out, by rules that ask no model.

In: the minimal units of a response. Out: coarser ones, or fewer. By Proposition 1 a coarse unit loses what the finer
ones say about its inside. A merge never crosses a lost stretch, and the stop stays a unit of its own. What is random
depends on a seed and on the response alone: not on the batch, the rank, or whether the run was resumed.
"""

from __future__ import annotations

import hashlib
import re
from abc import abstractmethod

import numpy as np
from typing_extensions import override

from simct_pl.alignment.base import Aligner, build_alignment, find_lost
from simct_pl.alignment.common_boundary import minimal_units
from simct_pl.alignment.one_to_one import is_one_to_one
from simct_pl.errors import RecipeError
from simct_pl.tokenization.pair import TokenizedPair
from simct_pl.types import BYTE_END, BYTE_START, STUDENT_END, STUDENT_START, TEACHER_END, TEACHER_START, UnitAlignment

_STARTS = [STUDENT_START, TEACHER_START, BYTE_START]
_ENDS = [STUDENT_END, TEACHER_END, BYTE_END]
_WHITESPACE = re.compile(r"\s")


class MergingAligner(Aligner):
    """Merges neighbouring minimal units. Subclasses say where a merged unit may begin."""

    @abstractmethod
    def begins(self, units_U6: np.ndarray, text: bytes) -> np.ndarray:
        """Which minimal units begin a merged one, bool [U]."""

    @override
    def align(self, pair: TokenizedPair) -> UnitAlignment:
        units_U6 = minimal_units(pair)
        lost = find_lost(pair, units_U6)
        if len(units_U6):
            begins_U = self.begins(units_U6, pair.text)
            if pair.student.stripped != pair.teacher.stripped:
                begins_U[1:2] = True  # the first unit cannot be supervised (build_alignment), and must not spoil others
            units_U6 = merge_units(units_U6, begins_U)
        return build_alignment(pair, units_U6, lost)


def merge_units(units_U6: np.ndarray, begins_U: np.ndarray) -> np.ndarray:
    """Join each unit that does not begin one to the unit before it, unless a lost stretch lies between the two.

    units_U6: int64 [U, 6], U > 0. begins_U: bool [U]. Returns int64 [merged, 6].
    """
    begins_U = begins_U | _behind_gaps(units_U6)
    # A merged unit starts where its first minimal unit does, and ends where the last one before the next beginning
    # does.
    first_W = np.flatnonzero(begins_U)
    last_W = np.append(first_W[1:], len(units_U6)) - 1
    merged_W6 = units_U6[first_W].copy()
    merged_W6[:, _ENDS] = units_U6[last_W][:, _ENDS]
    return merged_W6


def _behind_gaps(units_U6: np.ndarray) -> np.ndarray:
    """Which units do not follow the one before them at once, bool [U]; the first one does not."""
    behind_U = np.ones(len(units_U6), bool)
    behind_U[1:] = (units_U6[1:, _STARTS] != units_U6[:-1, _ENDS]).any(1)
    return behind_U


class WordAligner(MergingAligner):
    """Words: a merged unit begins where whitespace does, and takes all up to the next whitespace.

    Whitespace goes with the word behind it, as most tokenizers have it. A boundary inside a minimal unit does not
    count: a unit is never cut.
    """

    @override
    def begins(self, units_U6: np.ndarray, text: bytes) -> np.ndarray:
        marks_B = _word_starts(text)
        return marks_B[units_U6[:, BYTE_START]]


def _word_starts(text: bytes) -> np.ndarray:
    """Byte offsets at which a run of whitespace begins, any of Unicode's; bool [bytes + 1]."""
    # Bytes that are no UTF-8 become one lone surrogate each, so that the widths of all characters add up to the text's.
    decoded = text.decode("utf-8", errors="surrogateescape")
    spaces = np.fromiter((bool(_WHITESPACE.match(char)) for char in decoded), bool, len(decoded))
    widths = np.fromiter(
        (len(char.encode("utf-8", errors="surrogateescape")) for char in decoded), np.int64, len(decoded)
    )
    # Of each run of whitespace only the first character counts, and its place in characters becomes one in bytes.
    starts_run = spaces & ~np.append(False, spaces[:-1])
    marks_B = np.zeros(len(text) + 1, bool)
    marks_B[(np.cumsum(widths) - widths)[starts_run]] = True
    return marks_B


class FixedMergeAligner(MergingAligner):
    """Every m minimal units become one; the last one of a stretch may hold fewer.

    Raises:
        RecipeError: if m is less than 1.
    """

    def __init__(self, m: int = 2) -> None:
        if m < 1:
            raise RecipeError(f"m is {m}; expected at least 1 unit.")
        self.m = m

    @override
    def begins(self, units_U6: np.ndarray, text: bytes) -> np.ndarray:
        # Counted anew behind each lost stretch: the running maximum is the last unit that one lies in front of.
        index_U = np.arange(len(units_U6))
        since_gap_U = index_U - np.maximum.accumulate(np.where(_behind_gaps(units_U6), index_U, 0))
        return since_gap_U % self.m == 0


class RandomMergeAligner(MergingAligner):
    """Each boundary between minimal units is removed with a probability.

    Args:
        share: of the boundaries, in [0, 1]. seed: see the module.

    Raises:
        RecipeError: for a share outside [0, 1].
    """

    def __init__(self, share: float = 0.5, seed: int = 0) -> None:
        self.share, self.seed = _checked(share), seed

    @override
    def begins(self, units_U6: np.ndarray, text: bytes) -> np.ndarray:
        return _draws(text, self.seed, len(units_U6)) >= self.share


class MaskedSpansAligner(Aligner):
    """Minimal units, of which those that are not one token on each side are left unsupervised with a probability.

    At share 1 only 1:1 units are supervised, still over all candidates.

    Args:
        share: of the units with several tokens, in [0, 1]. seed: see the module.

    Raises:
        RecipeError: for a share outside [0, 1].
    """

    def __init__(self, share: float = 0.5, seed: int = 0) -> None:
        self.share, self.seed = _checked(share), seed

    @override
    def align(self, pair: TokenizedPair) -> UnitAlignment:
        units_U6 = minimal_units(pair)
        alignment = build_alignment(pair, units_U6, find_lost(pair, units_U6))
        masked_U = ~is_one_to_one(units_U6) & (_draws(pair.text, self.seed, len(units_U6)) < self.share)
        alignment.supervised_U[: len(units_U6)] &= ~masked_U
        return alignment


def _checked(share: float) -> float:
    if not 0 <= share <= 1:
        raise RecipeError(f"share is {share}; expected a share in [0, 1].")
    return share


def _draws(text: bytes, seed: int, count: int) -> np.ndarray:
    """Uniform numbers in [0, 1), [count], from the text and the seed."""
    digest = hashlib.blake2b(text, digest_size=8, key=seed.to_bytes(8, signed=True)).digest()
    return np.random.default_rng(int.from_bytes(digest)).random(count)
