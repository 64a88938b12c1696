"""A model's weights as safetensors files in a folder that appears whole or not at all; a few parameters in memory at a
time.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from simct_pl.export import write_folder
from simct_pl.parallel import full_parameters

SHARD_BYTES = 2**30


def write_weights(model: PreTrainedModel, folder: Path, shard_bytes: int = SHARD_BYTES) -> Path:
    """Configuration and parameters, without a tokenizer; returns the absolute path.

    Collective where the model is sharded, see simct_pl.parallel.full_parameters; every rank that calls it writes.

    Raises:
        ExportError: if the folder cannot be written.
    """

    def write(staging: Path) -> None:
        model.config.save_pretrained(staging)
        shard: dict[str, Tensor] = {}
        num_shards = 0
        for name, parameter in full_parameters(model):
            shard[name] = parameter.cpu().contiguous()
            if sum(tensor.nbytes for tensor in shard.values()) >= shard_bytes:
                num_shards += 1
                save_file(shard, staging / f"model-{num_shards:05d}.safetensors")
                shard = {}
        if shard:
            save_file(shard, staging / f"model-{num_shards + 1:05d}.safetensors")

    with torch.no_grad():
        return write_folder(folder, write)
