"""The units of the released SimCT code, for parity with its numbers.

Its greedy scan emits a unit only at an anchor, a token that both sides cut alike, and folds every mismatch before it
into that unit; a mismatch with no anchor after it is dropped. Here this is done over exact bytes, and the stop stays
a unit of its own.
"""

from __future__ import annotations

import numpy as np

from simct_pl.alignment.base import Aligner, build_alignment, find_lost
from simct_pl.alignment.common_boundary import minimal_units
from simct_pl.alignment.one_to_one import is_one_to_one
from simct_pl.tokenization.pair import TokenizedPair
from simct_pl.types import BYTE_START, STUDENT_END, STUDENT_START, TEACHER_END, TEACHER_START, UnitAlignment


class AnchorMergedAligner(Aligner):
    """Minimal units, each run of mismatches merged with the 1:1 unit that follows it."""

    def align(self, pair: TokenizedPair) -> UnitAlignment:
        units_U6 = minimal_units(pair)
        return build_alignment(pair, merge_into_anchors(units_U6), find_lost(pair, units_U6))


def merge_into_anchors(units_U6: np.ndarray) -> np.ndarray:
    """One unit an anchor: [anchors, 6]. A run never crosses a lost stretch; a run without an anchor is dropped."""
    anchors = np.flatnonzero(is_one_to_one(units_U6))
    if not len(anchors):
        return units_U6[:0]
    ends_2, starts_2 = [STUDENT_END, TEACHER_END], [STUDENT_START, TEACHER_START]
    # A run begins with the response, behind a lost stretch, and behind an anchor. The running maximum then gives each
    # unit the first unit of its run.
    starts_run_U = np.ones(len(units_U6), bool)
    starts_run_U[1:] = (units_U6[1:, starts_2] != units_U6[:-1, ends_2]).any(1)  # behind a lost stretch
    starts_run_U[anchors[anchors + 1 < len(units_U6)] + 1] = True
    first_U = np.maximum.accumulate(np.where(starts_run_U, np.arange(len(units_U6)), 0))
    # An anchor keeps its own ends and takes the starts of its run: the mismatches before it are folded into it.
    merged_U6 = units_U6[anchors].copy()
    for column in (STUDENT_START, TEACHER_START, BYTE_START):
        merged_U6[:, column] = units_U6[first_U[anchors], column]
    return merged_U6
