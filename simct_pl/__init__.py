"""On-policy distillation across tokenizers, on Lightning.

Importing this package imports nothing heavy; the names below load what they need when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from simct_pl.alignment import (
        AnchorMergedAligner,
        CommonBoundaryAligner,
        FixedMergeAligner,
        MaskedSpansAligner,
        OneToOneAligner,
        RandomMergeAligner,
        WordAligner,
    )
    from simct_pl.data.prompts import PromptDataModule, PromptSource
    from simct_pl.losses.alm import ALMLoss
    from simct_pl.losses.api import distillation_loss
    from simct_pl.losses.bpm import BPMLoss
    from simct_pl.losses.cross_entropy import CrossEntropyLoss
    from simct_pl.losses.dpca import DPCALoss
    from simct_pl.losses.dskd import DSKDCma, DSKDEta
    from simct_pl.losses.gold import GOLDLoss
    from simct_pl.losses.mixture import MixtureLoss
    from simct_pl.losses.shared_vocab import SharedVocabLoss
    from simct_pl.losses.simct import SimCTLoss
    from simct_pl.losses.token_conditional import TokenConditionalLoss
    from simct_pl.losses.uld import ULDLoss
    from simct_pl.losses.xtoken import XTokenHKL, XTokenPKL
    from simct_pl.tokenization.bytes import TokenBytes
    from simct_pl.tokenization.pair import TokenizerPair
    from simct_pl.tokenization.shared_vocab import SharedVocab
    from simct_pl.training.module import DistillModule

_HOMES = {
    "ALMLoss": "simct_pl.losses.alm",
    "AnchorMergedAligner": "simct_pl.alignment",
    "BPMLoss": "simct_pl.losses.bpm",
    "CommonBoundaryAligner": "simct_pl.alignment",
    "CrossEntropyLoss": "simct_pl.losses.cross_entropy",
    "DPCALoss": "simct_pl.losses.dpca",
    "DSKDCma": "simct_pl.losses.dskd",
    "DSKDEta": "simct_pl.losses.dskd",
    "DistillModule": "simct_pl.training.module",
    "FixedMergeAligner": "simct_pl.alignment",
    "GOLDLoss": "simct_pl.losses.gold",
    "MaskedSpansAligner": "simct_pl.alignment",
    "MixtureLoss": "simct_pl.losses.mixture",
    "OneToOneAligner": "simct_pl.alignment",
    "PromptDataModule": "simct_pl.data.prompts",
    "PromptSource": "simct_pl.data.prompts",
    "RandomMergeAligner": "simct_pl.alignment",
    "SharedVocab": "simct_pl.tokenization.shared_vocab",
    "SharedVocabLoss": "simct_pl.losses.shared_vocab",
    "SimCTLoss": "simct_pl.losses.simct",
    "TokenBytes": "simct_pl.tokenization.bytes",
    "TokenConditionalLoss": "simct_pl.losses.token_conditional",
    "TokenizerPair": "simct_pl.tokenization.pair",
    "ULDLoss": "simct_pl.losses.uld",
    "WordAligner": "simct_pl.alignment",
    "XTokenHKL": "simct_pl.losses.xtoken",
    "XTokenPKL": "simct_pl.losses.xtoken",
    "distillation_loss": "simct_pl.losses.api",
}

__all__ = [
    "ALMLoss",
    "AnchorMergedAligner",
    "BPMLoss",
    "CommonBoundaryAligner",
    "CrossEntropyLoss",
    "DPCALoss",
    "DSKDCma",
    "DSKDEta",
    "DistillModule",
    "FixedMergeAligner",
    "GOLDLoss",
    "MaskedSpansAligner",
    "MixtureLoss",
    "OneToOneAligner",
    "PromptDataModule",
    "PromptSource",
    "RandomMergeAligner",
    "SharedVocab",
    "SharedVocabLoss",
    "SimCTLoss",
    "TokenBytes",
    "TokenConditionalLoss",
    "TokenizerPair",
    "ULDLoss",
    "WordAligner",
    "XTokenHKL",
    "XTokenPKL",
    "distillation_loss",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
