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

from simct_pl.models.adapter_folder import tokenizer_folder
from simct_pl.models.loading import DtypeName, check_model_path, context_length, load_causal_lm, weights_id
from simct_pl.models.lora import Lora
from simct_pl.rollout.engine import RolloutEngine, StudentSource
from simct_pl.rollout.hf import HFEngine
from simct_pl.tokenization.model_tokenizer import ModelTokenizer


@dataclass(frozen=True)
class InferenceModel:
    """path: with the home folder spelt out. context: in tokens, None if unknown. engine: who generates. lora: the
    adapter and its base model, where path is an adapter folder.
    """

    path: str
    tokenizer: ModelTokenizer
    context: int | None
    engine: RolloutEngine
    dtype: DtypeName
    trust_remote_code: bool
    lora: Lora | None = None

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
        lora = Lora.of("model", path, None)
        base, folder = (path, None) if lora is None else (lora.base, lora.folder)
        check_model_path("model", base)
        context = context_length("model", base, trust_remote_code)
        tokenizer = ModelTokenizer.from_pretrained(tokenizer_folder(folder, base), template)
        engine.check(StudentSource(base, context, trust_remote_code, num_ranks=1))
        return cls(path, tokenizer, context, engine, dtype, trust_remote_code, lora)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What its responses depend on, as plain values."""
        weights = weights_id(self.path)
        if self.lora is not None:
            weights = f"{weights_id(self.lora.base)}+{weights}"
        return {"model": self.path, "weights": weights, "tokenizer": self.tokenizer.fingerprint, "dtype": self.dtype}

    @contextmanager
    def loaded(self) -> Iterator[Callable[[], None]]:
        """Hand the weights to the engine, on the GPU where there is one; gives what starts the engine anew. The engine
        is closed in the end.

        Raises:
            ModelFolderError: if the weights cannot be read.
        """
        base = self.path if self.lora is None else self.lora.base
        lm = load_causal_lm("model", base, self.dtype, self.trust_remote_code).eval()
        if self.lora is not None:
            self.lora.attach(lm)
            lm.requires_grad_(False)
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
