"""A configuration → a model whose weights have sizes and no storage; its sizes, and what generation keeps."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from simct_pl.errors import UnsupportedModelError, first_line
from simct_pl.models.lm_head import LMHead
from simct_pl.models.lora import Lora, TrainedShare
from simct_pl.models.sharding import decoder_blocks
from simct_pl.rehearsal.device import FakeDevice
from simct_pl.rehearsal.ledger import Place
from simct_pl.rehearsal.values import NEEDS_VALUES


@dataclass(frozen=True)
class ModelSource:
    """What a model is built from. trust_remote_code: whether its own Python code may run."""

    config: PretrainedConfig
    trust_remote_code: bool = False


@dataclass(frozen=True)
class ModelSize:
    """Parameters of a model, and of its decoder blocks if its architecture names any; what is tied counts once.

    trained: of the parameters, those of adapters and what is trained beside them; None: all.
    """

    parameters: int
    blocks: tuple[int, ...]
    trained: int | None = None

    @classmethod
    def of(cls, model: PreTrainedModel) -> ModelSize:
        """Count a model that may be without storage.

        Raises:
            UnsupportedModelError: if it does not end as a causal language model does.
        """
        LMHead.of(model)
        try:
            blocks = decoder_blocks(model)
        except UnsupportedModelError:  # it can train all the same, unsharded
            blocks = []
        share = TrainedShare.of(model)
        trained = None if share.trained == share.all else share.trained
        return cls(share.all, tuple(TrainedShare.of(block).all for block in blocks), trained)


def build(
    source: ModelSource, dtype: torch.dtype, mode: FakeDevice, name: str, lora: Lora | None = None
) -> PreTrainedModel:
    """A model of any architecture; its parameters are the ledger's, under the name.

    dtype: of the weights. lora: adapters that it gets.

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
    if lora is not None:
        _attach_without_storage(lora, model, mode, name)
    for tensor in [*model.parameters(), *model.buffers()]:
        mode.ledger.hold(tensor, Place(name, name))
    return model


def _attach_without_storage(lora: Lora, model: PreTrainedModel, mode: FakeDevice, name: str) -> None:
    """Adapters on a device whose tensors PEFT cannot move: they are made on none, and then once more on that one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tensors without storage that are copied
        lora.attach(model, load=False, empty=True)
    with mode.making(name):
        for module in model.modules():
            for own, parameter in module.named_parameters(recurse=False):
                if parameter.is_meta:
                    new = torch.empty(parameter.shape, dtype=parameter.dtype)
                    setattr(module, own, torch.nn.Parameter(new, requires_grad=parameter.requires_grad))


def size_of(source: ModelSource, lora: Lora | None = None) -> ModelSize:
    """Sizes of a model that nobody has loaded.

    Raises:
        UnsupportedModelError: see `build`.
    """
    return ModelSize.of(build(source, torch.bfloat16, FakeDevice("cpu"), "model", lora))


def cache_bytes(source: ModelSource, dtype: torch.dtype, length: int) -> int:
    """What generation keeps of one sequence: keys and values, or what an architecture has in their place.

    Raises:
        UnsupportedModelError: if the forward cannot be followed.
    """
    mode = FakeDevice("cpu")
    model = build(source, dtype, mode, "model").eval()
    with mode, torch.no_grad():
        output = model.get_decoder()(input_ids=torch.ones(1, length, dtype=torch.int64), use_cache=True)
        # A sliding layer's part is a view of more, until the next token is appended: its own size counts.
        found = {id(tensor): tensor.nbytes for tensor in _held_tensors(output.get("past_key_values"), set())}
    return sum(found.values())


def _held_tensors(value: Any, seen: set[int]) -> Iterator[Tensor]:
    """Tensors that an object of transformers' caches refers to."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _held_tensors(item, seen)
    elif isinstance(value, dict):
        yield from _held_tensors(list(value.values()), seen)
    elif hasattr(value, "__dict__") and type(value).__module__.startswith("transformers") and id(value) not in seen:
        seen.add(id(value))
        if not isinstance(value, PretrainedConfig):
            yield from _held_tensors(vars(value), seen)
