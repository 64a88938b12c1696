"""A configuration → a model whose weights have sizes and no storage, on a device that may not be there."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from simct_pl.errors import UnsupportedModelError, first_line
from simct_pl.rehearsal.device import FakeDevice
from simct_pl.rehearsal.ledger import Place
from simct_pl.rehearsal.values import NEEDS_VALUES


@dataclass(frozen=True)
class ModelSource:
    """What a model is built from. trust_remote_code: whether its own Python code may run."""

    config: PretrainedConfig
    trust_remote_code: bool = False


def build(source: ModelSource, dtype: torch.dtype, mode: FakeDevice, name: str) -> PreTrainedModel:
    """A model of any architecture; its parameters are the ledger's, under the name.

    dtype: of the weights.

    Raises:
        UnsupportedModelError: if transformers cannot build a causal language model of it.
    """
    try:
        with mode.making(name), no_init_weights():
            model: PreTrainedModel = AutoModelForCausalLM.from_config(
                deepcopy(source.config), dtype=dtype, trust_remote_code=source.trust_remote_code
            )
            model.tie_weights()  # part of the initialisation that is left out
    except (ValueError, KeyError, ImportError, *NEEDS_VALUES) as error:
        raise UnsupportedModelError(
            f"transformers builds no causal language model of model_type {source.config.model_type!r}: "
            f"{first_line(error)}"
        ) from error
    for tensor in [*model.parameters(), *model.buffers()]:
        mode.ledger.hold(tensor, Place(name, name))
    return model
