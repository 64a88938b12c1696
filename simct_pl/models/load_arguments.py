"""transformers' own load arguments, as a recipe gives them: a quantised model, an attention kernel, a revision.

In: plain values. Out: what `from_pretrained` takes. A quantization_config becomes the class that transformers has for
its method, and is tried on this machine before any weights load.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

import torch
from transformers import PretrainedConfig
from transformers.quantizers.auto import AutoHfQuantizer, AutoQuantizationConfig

from simct_pl.errors import MissingPackageError, RecipeError, first_line

QUANTISATION = "quantization_config"
# Said by other values of a recipe, or by what the run needs.
OURS = {
    **{"dtype": "the dtype beside it", "torch_dtype": "the dtype beside it", "trust_remote_code": "trust_remote_code"},
    **{"use_safetensors": "nothing: only safetensors are loaded", "config": "the model's folder"},
    **{"device_map": "the trainer: each rank has its device", "state_dict": "the model's folder"},
}


def check_load_arguments(name: str, values: Mapping[str, Any], device: torch.device) -> None:
    """Refuse what cannot be loaded with, before anything is. name: as errors call the values.

    Raises:
        RecipeError: for an argument that another value of the recipe decides, or a quantization_config that
            transformers does not know or cannot run here. MissingPackageError: if it needs a package.
    """
    for key, said_by in OURS.items():
        if key in values:
            raise RecipeError(f"{name}.{key} is not set here; it is decided by {said_by}. Leave it out.")
    if QUANTISATION in values:
        _quantisation(name, values[QUANTISATION], device)


def load_arguments(name: str, values: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """What from_pretrained takes. A quantised model is read onto its device, where it is packed.

    Raises:
        As check_load_arguments.
    """
    check_load_arguments(name, values, device)
    if QUANTISATION not in values:
        return dict(values)
    config = _quantisation(name, values[QUANTISATION], device)
    return {**values, QUANTISATION: config, "device_map": {"": device}}


def is_quantised(values: Mapping[str, Any], config: PretrainedConfig) -> bool:
    """Whether the weights are packed: when they are loaded, or in the folder already."""
    return QUANTISATION in values or getattr(config, QUANTISATION, None) is not None


def bits_a_weight(values: Mapping[str, Any]) -> float | None:
    """Of a decoder block of a model that bitsandbytes packs. With 4 bits, a scale of 32 for each 64 weights comes on
    top, or of 8 with bnb_4bit_use_double_quant. None for other ways, and for weights that are not packed.
    """
    said = values.get(QUANTISATION, {})
    if said.get("load_in_4bit"):
        return 4 + (8 if said.get("bnb_4bit_use_double_quant") else 32) / 64
    return 8.0 if said.get("load_in_8bit") else None


def _quantisation(name: str, values: Any, device: torch.device) -> Any:
    said = f"{name}.{QUANTISATION} {values!r}"
    try:
        config = AutoQuantizationConfig.from_dict(dict(values))
        known = [key for key in config.to_dict() if not key.startswith("_")]
        for key in values:
            if key not in known:  # transformers would pass over it
                near = difflib.get_close_matches(key, known, n=1)
                hint = f" Did you mean {near[0]!r}?" if near else ""
                raise RecipeError(f"{said}: {key!r} is no field of {type(config).__name__}.{hint}")
        AutoHfQuantizer.from_config(config, pre_quantized=False).validate_environment(device_map={"": device})
    except ImportError as error:
        raise MissingPackageError(f"{said} needs a package that is not installed: {first_line(error)}") from error
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        if isinstance(error, RecipeError):
            raise
        raise RecipeError(
            f"{said} is refused by transformers: {first_line(error)}. Write it as transformers does, such as "
            "{load_in_8bit: true} for bitsandbytes; others name their quant_method."
        ) from error
    return config
