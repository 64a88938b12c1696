"""Aligners: from the tokens of two models to the units that both spell. TokenizedPair in, UnitAlignment out.

`base` says what an aligner is and what any alignment must keep. `common_boundary` cuts wherever both sides end a token:
the minimal units, from which all others are made. `one_to_one` keeps those of one token on each side, `anchor_merged`
folds mismatches as the released code does, `coarse` merges or masks units by rules that ask no model.
"""

from simct_pl.alignment.anchor_merged import AnchorMergedAligner
from simct_pl.alignment.base import Aligner, check_invariants
from simct_pl.alignment.coarse import FixedMergeAligner, MaskedSpansAligner, RandomMergeAligner, WordAligner
from simct_pl.alignment.common_boundary import CommonBoundaryAligner
from simct_pl.alignment.one_to_one import OneToOneAligner

__all__ = [
    "Aligner",
    "AnchorMergedAligner",
    "CommonBoundaryAligner",
    "FixedMergeAligner",
    "MaskedSpansAligner",
    "OneToOneAligner",
    "RandomMergeAligner",
    "WordAligner",
    "check_invariants",
]
