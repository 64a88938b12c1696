"""The student's weights as vLLM takes them: a stream of named tensors, or safetensors files in a folder. Adapters are
merged into them, so that vLLM needs to know of none.

Tied parameters go under each of their names. vLLM's CPU backend computes a tied head from a copy of its own, packed for
its kernels, and refreshes that only when it is given a head.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import Parameter
from transformers import PreTrainedModel

from simct_pl.files.atomic import whole_folder, write_errors
from simct_pl.files.outputs import check_output
from simct_pl.models.merging import base_names, merged_parameters
from simct_pl.models.sharding import decoder_blocks

SHARD_BYTES = 2**30


def weight_names(model: PreTrainedModel) -> list[str]:
    """The names of `named_weights`, in its order. Not collective."""
    return [name for names in _names_by_first(model).values() for name in names]


def named_weights(model: PreTrainedModel, only_changing: bool = False) -> Iterator[tuple[str, Tensor]]:
    """Every name of every parameter, with the whole tensor, detached: gathered once, also where it is tied.

    only_changing: leave out what is not trained, as far as vLLM can be without it: a block of which anything is
        trained goes whole, because vLLM stacks the weights of several layers and takes a stack whole or not at all.

    Collective where the model is sharded.
    """
    names, resting = _names_by_first(model), _resting(model) if only_changing else set()
    for first, tensor in merged_parameters(model, resting):
        for name in names[first]:
            yield name, tensor


def _resting(model: PreTrainedModel) -> set[Parameter]:
    """Parameters that training leaves as they are, without those that lie in a block with others."""
    frozen = {parameter for parameter in model.parameters() if not parameter.requires_grad}
    for block in decoder_blocks(model) if frozen else ():
        inside = set(block.parameters())
        if not inside <= frozen:
            frozen -= inside
    return frozen


def _names_by_first(model: PreTrainedModel) -> dict[str, list[str]]:
    """First name of each parameter → all of its names, in the base model where the student has adapters.

    Further names come before the first one: vLLM wants the weights below one module in a row.
    """
    # By the object: a tied parameter is met once under each of its names.
    names: dict[int, list[str]] = {}
    base = base_names(model)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if name in base:
            names.setdefault(id(parameter), []).append(base[name])
    return {first: [*further, first] for first, *further in names.values()}


def write_weights(model: PreTrainedModel, folder: Path, shard_bytes: int = SHARD_BYTES) -> Path:
    """The configuration and `named_weights` in a folder that appears whole or not at all; returns its absolute path.

    Holds shard_bytes in memory at a time. Collective where the model is sharded, also when the folder cannot be
    written: ranks that only walk through the weights are not left waiting. Every rank that calls it writes.

    Raises:
        ExportError: if the folder cannot be written.
    """
    weights = named_weights(model)
    with torch.no_grad():
        try:
            folder = check_output(folder)
            with whole_folder(folder, survives_power_cut=False) as staging, write_errors(folder, SafetensorError):
                model.config.save_pretrained(staging)
                for i, shard in enumerate(_shards(weights, shard_bytes), start=1):
                    save_file(shard, staging / f"model-{i:05d}.safetensors")
        finally:
            for _ in weights:  # what a failure left to gather
                pass
    return folder


def _shards(weights: Iterator[tuple[str, Tensor]], shard_bytes: int) -> Iterator[dict[str, Tensor]]:
    shard: dict[str, Tensor] = {}
    for name, tensor in weights:
        if any(tensor.data_ptr() == other.data_ptr() for other in shard.values()):
            tensor = tensor.clone()  # tied: safetensors takes no tensor twice
        shard[name] = tensor.cpu().contiguous()
        if sum(part.nbytes for part in shard.values()) >= shard_bytes:
            yield shard
            shard = {}
    if shard:
        yield shard
