"""A model that answers without being trained: checked before its weights load, then handed to an engine.

In: a model folder or hub name, and an engine. Out: its tokenizer and context, and the engine with its weights.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from simct_pl.models.loading import DtypeName, check_model_path, context_length, load_causal_lm, weights_id
from simct_pl.rollout.engine import RolloutEngine, StudentSource
from simct_pl.rollout.hf import HFEngine
from simct_pl.tokenization.model_tokenizer import ModelTokenizer


@dataclass(frozen=True)
class InferenceModel:
    """path: with the home folder spelt out. context: in tokens, None if unknown. engine: who generates."""

    path: str
    tokenizer: ModelTokenizer
    context: int | None
    engine: RolloutEngine
    dtype: DtypeName
    trust_remote_code: bool

    @classmethod
    def check(
        cls,
        path: str,
        engine: RolloutEngine | None,
        dtype: DtypeName,
        trust_remote_code: bool = False,
        template: dict[str, Any] | None = None,
    ) -> InferenceModel:
        """Read all but the weights. engine: HFEngine by default. template: arguments of the model's chat template.

        Raises:
            SimctError: if the model is not as it should be, or the engine cannot generate with it.
        """
        path, engine = os.path.expanduser(path), engine or HFEngine()
        check_model_path("model", path)
        context = context_length("model", path, trust_remote_code)
        tokenizer = ModelTokenizer.from_pretrained(path, template)
        engine.check(StudentSource(path, context, trust_remote_code, num_ranks=1))
        return cls(path, tokenizer, context, engine, dtype, trust_remote_code)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What its responses depend on, as plain values."""
        weights = weights_id(self.path)
        return {"model": self.path, "weights": weights, "tokenizer": self.tokenizer.fingerprint, "dtype": self.dtype}

    @contextmanager
    def loaded(self) -> Iterator[Callable[[], None]]:
        """Hand the weights to the engine, on the GPU where there is one; gives what starts the engine anew. The engine
        is closed in the end.

        Raises:
            ModelFolderError: if the weights cannot be read.
        """
        lm = load_causal_lm("model", self.path, self.dtype, self.trust_remote_code).eval()
        if isinstance(self.engine, HFEngine) and torch.cuda.is_available():
            lm = lm.to("cuda")

        def reset() -> None:
            self.engine.close()
            self.engine.refresh(lm, 0)

        try:
            self.engine.refresh(lm, 0)
            yield reset
        finally:
            self.engine.close()
