"""An adapter folder, as PEFT writes and reads it: adapter_config.json and adapter_model.safetensors.

In: a model with adapters. Out: such a folder, which PEFT loads onto the base model; and back again.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from simct_pl.errors import ModelFolderError, first_line
from simct_pl.models.sharding import full_tensor

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."  # what PEFT's wrapper puts in front of the names in a file
# Written by PEFT about the folder, and no choice of anybody's.
ABOUT = ("task_type", "peft_type", "auto_mapping", "peft_version", "revision", "inference_mode")


def is_adapter(path: str) -> bool:
    return (Path(path) / CONFIG).is_file()


def read_adapter_config(role: str, path: str) -> tuple[str, dict[str, Any]]:
    """(base model, the fields of LoraConfig that have a value).

    Raises:
        ModelFolderError: if it is no LoRA, or does not name its base model.
    """
    try:
        found = json.loads((Path(path) / CONFIG).read_text(encoding="utf-8"))
        base, kind = found["base_model_name_or_path"], found["peft_type"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ModelFolderError(f"{role} {path!r} has an {CONFIG} that cannot be read: {first_line(error)}") from error
    if kind != "LORA":
        raise ModelFolderError(f"{role} {path!r} is an adapter of kind {kind!r}; expected LORA. Merge it with PEFT.")
    if not isinstance(base, str) or not base:
        raise ModelFolderError(
            f"{role} {path!r} does not name its base model. Write it into base_model_name_or_path of {CONFIG}."
        )
    if not (Path(path) / WEIGHTS).is_file():
        raise ModelFolderError(f"{role} {path!r} has no {WEIGHTS}. Only safetensors are loaded; save it with PEFT.")
    values = {name: value for name, value in found.items() if value not in (None, [], {}) and name not in ABOUT}
    return values.pop("base_model_name_or_path"), values


def tokenizer_folder(adapter: Path | None, base: str) -> str:
    """Where the tokenizer of an adapter is: in its own folder, if there is one, else with its base model."""
    return str(adapter) if adapter is not None and (adapter / "tokenizer_config.json").is_file() else base


@torch.no_grad()
def load_adapter(model: PreTrainedModel, folder: Path) -> None:
    """Read what is trained into a model that has adapters of the same shapes.

    Raises:
        ModelFolderError: if the file has other tensors than the model is to train.
    """
    from peft import set_peft_model_state_dict

    try:
        file = {name.removeprefix(PREFIX): tensor for name, tensor in load_file(folder / WEIGHTS).items()}
    except (OSError, SafetensorError) as error:
        raise ModelFolderError(f"{folder / WEIGHTS} cannot be read: {first_line(error)}") from error
    own, expected = dict(model.named_parameters(remove_duplicate=False)), set(adapter_state(model))
    if expected != file.keys():
        odd = sorted(expected ^ file.keys())
        raise ModelFolderError(
            f"The adapter in {str(folder)!r} does not fit the model that it names: {odd[0]!r} is in one of the two "
            f"alone, with {len(odd) - 1} more. Was it trained on another model, or with other layers?"
        )
    try:
        whole = {name for name in file if name in own}
        set_peft_model_state_dict(model, {name: tensor for name, tensor in file.items() if name not in whole})
        for name in whole:
            own[name].copy_(file[name])
    except RuntimeError as error:
        raise ModelFolderError(f"The adapter in {str(folder)!r} does not fit its model: {first_line(error)}") from error


def adapter_state(model: PreTrainedModel, *, keep: bool = True) -> dict[str, Tensor]:
    """What is trained, by the names of PEFT's files without their prefix, whole. Collective where the model is sharded.

    keep: False gathers with the others and keeps nothing.
    """
    from peft import get_peft_model_state_dict

    trained: dict[str, Tensor] = {}
    gathered: dict[int, Tensor] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter.requires_grad:
            if id(parameter) not in gathered:
                whole = full_tensor(parameter)
                gathered[id(parameter)] = whole if keep else whole.new_empty(0)
            trained[name] = gathered[id(parameter)]
    if not keep:
        return {}
    adapters = get_peft_model_state_dict(model, state_dict=trained, save_embedding_layers=False)
    return adapters | {name: tensor for name, tensor in trained.items() if "lora_" not in name}


def write_adapter(model: PreTrainedModel, state: dict[str, Tensor], folder: Path) -> None:
    """Configuration and weights of a model's adapters. state: of `adapter_state`.

    Raises:
        OSError, SafetensorError: if they cannot be written.
    """
    config: Any = model.peft_config["default"]
    config.save_pretrained(str(folder))
    save_file(
        {f"{PREFIX}{name}": tensor.cpu().clone().contiguous() for name, tensor in state.items()},
        folder / WEIGHTS,
        metadata={"format": "pt"},
    )
