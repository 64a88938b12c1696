"""The units of the `exact` baseline: one token on each side, from the same partition and the same bytes as SimCT's.

All other units are left out on purpose: they are no units here and have no lost reason; coverage shows them.
"""

from __future__ import annotations

import numpy as np

from simct_pl.alignment.base import Aligner, build_alignment, find_lost
from simct_pl.alignment.common_boundary import minimal_units
from simct_pl.tokenization.pair import TokenizedPair
from simct_pl.types import STUDENT_END, STUDENT_START, TEACHER_END, TEACHER_START, UnitAlignment


class OneToOneAligner(Aligner):
    """Only the minimal units with one student token and one teacher token."""

    def align(self, pair: TokenizedPair) -> UnitAlignment:
        units_U6 = minimal_units(pair)
        return build_alignment(pair, units_U6[is_one_to_one(units_U6)], find_lost(pair, units_U6))


def is_one_to_one(units_U6: np.ndarray) -> np.ndarray:
    """Which units have one token on each side, bool [U]."""
    lengths_U2 = units_U6[:, [STUDENT_END, TEACHER_END]] - units_U6[:, [STUDENT_START, TEACHER_START]]
    return (lengths_U2 == 1).all(1)
