"""Aligners: from the tokens of two models to the units that both spell."""

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
