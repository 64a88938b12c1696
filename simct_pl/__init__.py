"""On-policy distillation across tokenizers, on Lightning.

Importing this package imports nothing heavy; the names below load what they need when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from simct_pl.alignment import AnchorMergedAligner, CommonBoundaryAligner, OneToOneAligner
    from simct_pl.data.prompts import PromptDataModule, PromptSource
    from simct_pl.losses.api import distillation_loss
    from simct_pl.losses.shared_vocab import SharedVocabLoss
    from simct_pl.losses.simct import SimCTLoss
    from simct_pl.module import DistillModule
    from simct_pl.tokenization.bytes import TokenBytes
    from simct_pl.tokenization.pair import TokenizerPair
    from simct_pl.tokenization.shared_vocab import SharedVocab

_HOMES = {
    "AnchorMergedAligner": "simct_pl.alignment",
    "CommonBoundaryAligner": "simct_pl.alignment",
    "DistillModule": "simct_pl.module",
    "OneToOneAligner": "simct_pl.alignment",
    "PromptDataModule": "simct_pl.data.prompts",
    "PromptSource": "simct_pl.data.prompts",
    "SharedVocab": "simct_pl.tokenization.shared_vocab",
    "SharedVocabLoss": "simct_pl.losses.shared_vocab",
    "SimCTLoss": "simct_pl.losses.simct",
    "TokenBytes": "simct_pl.tokenization.bytes",
    "TokenizerPair": "simct_pl.tokenization.pair",
    "distillation_loss": "simct_pl.losses.api",
}

__all__ = [
    "AnchorMergedAligner",
    "CommonBoundaryAligner",
    "DistillModule",
    "OneToOneAligner",
    "PromptDataModule",
    "PromptSource",
    "SharedVocab",
    "SharedVocabLoss",
    "SimCTLoss",
    "TokenBytes",
    "TokenizerPair",
    "distillation_loss",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
