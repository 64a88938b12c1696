"""The weights of a model whose adapters are merged into it, under the names of its base model: W + scale · B A.

In: a model with or without adapters (models/lora.py), sharded or not. Out: whole tensors, one layer at a time; the
model itself is not touched. Engines and exported folders need no adapters then.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from simct_pl.models.sharding import full_state_dict, full_tensor, is_sharded

BASE = ".base_layer."  # of an adapted layer's own weights, in PEFT's names


def has_adapters(model: nn.Module) -> bool:
    return bool(getattr(model, "peft_config", None))


def adapted_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Name → layer, of those that have an adapter."""
    if not has_adapters(model):
        return {}
    return {name: module for name, module in model.named_modules() if hasattr(module, "base_layer")}


def base_names(model: nn.Module) -> dict[str, str]:
    """Every name of every parameter that the base model has too → its name there. Not collective."""
    inside = {f"{prefix}." for prefix in adapted_layers(model)}
    found = {}
    for name, _ in model.named_parameters(remove_duplicate=False):
        adapted = [prefix for prefix in _prefixes(name) if prefix in inside]
        if not adapted:
            found[name] = name
        elif BASE in name:
            found[name] = base_name(name)
    return found


def base_name(name: str) -> str:
    """The base model's name of one of its own parameters or buffers."""
    return name.replace(BASE, ".")


def _prefixes(name: str) -> Iterator[str]:
    """ "a.b.c" → "a.", "a.b." """
    for i, letter in enumerate(name):
        if letter == ".":
            yield name[: i + 1]


@torch.no_grad()
def merged_parameters(model: nn.Module, resting: Collection[Tensor] = ()) -> Iterator[tuple[str, Tensor]]:
    """Each parameter of the base model by its name there, whole and detached; tied ones once, under their first name.

    resting: parameters to leave out. Of a layer with an adapter, nothing is left out.

    One layer is merged at a time. Collective where the model is sharded, as full_parameters is.
    """
    layers = adapted_layers(model)
    if not layers:
        for name, parameter in model.named_parameters():
            if parameter not in resting:
                yield name, full_tensor(parameter)
        return
    names, at, merged = base_names(model), "", nn.Module()
    for name, parameter in model.named_parameters():
        if name not in names:
            continue
        prefix, _, inner = name.rpartition(BASE)
        if prefix and prefix in layers:
            if at != prefix:
                at, merged = prefix, _merged(layers[prefix])
            yield names[name], merged.get_parameter(inner).detach()
        elif parameter not in resting:
            yield names[name], full_tensor(parameter)


def _merged(layer: nn.Module) -> nn.Module:
    """The base layer of a copy of an adapted one, merged as PEFT merges it: whatever kind of LoRA it is."""
    # The copy's parameters are whole ones of its own, so that nothing is written over.
    whole: dict[int, Any] = {}
    for parameter in layer.parameters():
        tensor = full_tensor(parameter)
        tensor = tensor if isinstance(parameter, DTensor) else tensor.clone()
        whole[id(parameter)] = nn.Parameter(tensor, requires_grad=False)
    own: Any = copy.deepcopy(layer, whole)
    own.merge()
    base: nn.Module = own.get_base_layer()
    return base


def merged_state_dict(model: nn.Module, *, keep: bool = True) -> dict[str, Tensor]:
    """The base model's state_dict with adapters merged into it; see full_state_dict. Collective."""
    if not has_adapters(model):
        return full_state_dict(model, keep=keep)
    merged = {}
    for name, tensor in merged_parameters(model):
        merged[name] = tensor.cpu() if keep and is_sharded(model) else tensor if keep else tensor.new_empty(0)
    if not keep:
        return {}
    names, first = base_names(model), {id(p): name for name, p in model.named_parameters()}
    own = dict(model.named_parameters(remove_duplicate=False))
    state = {names[name]: merged[names[first[id(own[name])]]] for name in own if name in names}
    buffers = {name: buffer for name, buffer in model.state_dict().items() if name not in own}
    return state | {base_name(name): full_tensor(buffer) for name, buffer in buffers.items()}


@contextmanager
def without_adapters(model: nn.Module) -> Iterator[None]:
    """Inside, the model is its base model."""
    layers: list[Any] = [*adapted_layers(model).values()]
    for layer in layers:
        layer._disable_adapters = True  # not enable_adapters(), which also stops gradients of the parameters
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False
