"""Loading causal language models: the configuration first, the weights only when everything else has been checked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PretrainedConfig, PreTrainedModel

from simct_pl.errors import MissingFileError, MissingPackageError, ModelFolderError, first_line, require_choice
from simct_pl.files.fingerprint import FileFingerprint

DtypeName = Literal["float32", "bfloat16", "float16"]
SHORTEN_PROMPTS = "Lower max_tokens, or leave long prompts out (max_prompt_chars)."


def torch_dtype(name: DtypeName) -> torch.dtype:
    require_choice("dtype", name, get_args(DtypeName))
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]


def check_model_path(role: str, path: str, needs_weights: bool = True) -> None:
    """Refuse early what cannot be a model: a missing local path, an adapter, a folder without config.json or weights.

    Raises:
        MissingFileError, ModelFolderError: naming the role ("student", "teacher") and the path.
    """
    folder = Path(path).expanduser()
    if not folder.exists():
        looks_local = path.startswith((".", "/", "~")) or path.count("/") != 1 or folder.parent.is_dir()
        if looks_local:
            raise MissingFileError(
                f"{role} {path!r} does not exist. Give a model folder, or a hub name such as org/model."
            )
        return
    refuse_adapter(role, path)
    if not (folder / "config.json").is_file():
        raise ModelFolderError(f"{role} {path!r} is not a model folder: it has no config.json.{_other_kind(folder)}")
    if needs_weights and not any(folder.glob("*.safetensors")):
        raise ModelFolderError(
            f"{role} {path!r} has no *.safetensors weights. Only safetensors are loaded; "
            "save the model with save_pretrained()."
        )


def refuse_adapter(role: str, path: str) -> None:
    """Refuse a folder with an adapter, whatever else it holds: where peft is installed, transformers would load the
    adapter's base model, and leave weights beside it unread.

    Raises:
        ModelFolderError: naming the base model, and how the two become one.
    """
    folder = Path(path).expanduser()
    if not (folder / "adapter_config.json").is_file():
        return
    try:
        base = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):  # the advice is the same without the name
        base = None
    base = base if isinstance(base, str) and base else "its base model"
    raise ModelFolderError(
        f"{role} {path!r} is an adapter (LoRA), which changes the weights of {base} and has none of its own. Merge the "
        f"two and give the merged folder: with peft, AutoPeftModelForCausalLM.from_pretrained({str(folder)!r})"
        ".merge_and_unload().save_pretrained(FOLDER), and save the tokenizer there too."
    )


def _other_kind(path: Path) -> str:
    """What a path without config.json may be instead, and what to do; empty if nothing is known of it."""
    if path.is_file():
        kind = "convert-gguf makes a folder of it" if path.suffix == ".gguf" else "give the folder it is in"
        return f" It is a file; {kind}."
    if any(path.glob("*.gguf")):
        return " It holds a GGUF file: python -m simct_pl convert-gguf makes a model folder of it."
    if (path / "params.json").is_file():
        return " It holds weights in their maker's own layout (params.json); get the model in transformers' layout."
    inner = sorted(config.parent.name for config in path.glob("*/config.json"))
    return f" There is one in {', '.join(inner[:3])}; give that folder." if inner else ""


def load_config(role: str, path: str, trust_remote_code: bool = False) -> PretrainedConfig:
    """The configuration alone, no weights.

    Raises:
        MissingFileError, ModelFolderError: if there is none, or it cannot be read as one of a transformers model.
    """
    check_model_path(role, path, needs_weights=False)
    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise ModelFolderError(
            f"{role} {path!r} cannot be loaded as a transformers model: {first_line(error)}"
        ) from error


def context_length(role: str, path: str, trust_remote_code: bool = False) -> int | None:
    """Longest prompt + response, in the model's tokens; None when its configuration does not say.

    Raises:
        SimctError: see load_config.
    """
    config = load_config(role, path, trust_remote_code)
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def no_room(
    prompt: str,
    num_tokens: int,
    max_tokens: int,
    context: int | None,
    *,
    model: str = "student",
    fix: str = SHORTEN_PROMPTS,
) -> str | None:
    """Why a prompt cannot be answered with max_tokens tokens, in words; None if it can, or nobody knows the context.

    prompt, model: as the sentence names them, such as "Prompt 7" and "student". num_tokens: of the prompt.
    fix: what the user can do.
    """
    if context is None or num_tokens + max_tokens <= context:
        return None
    return (
        f"{prompt}: {num_tokens} tokens of prompt and max_tokens={max_tokens} exceed the {model}'s context of "
        f"{context}. {fix}"
    )


def weights_id(model: str) -> str:
    """Names the weights in a model folder, so that responses of others are not gone on with; empty for a hub name."""
    files = sorted(Path(model).glob("*.safetensors"))
    digests = "".join(FileFingerprint.of(file).sha256 for file in files)
    return hashlib.sha256(digests.encode()).hexdigest()[:16] if files else ""


def load_causal_lm(
    role: str,
    path: str,
    dtype: DtypeName | None,
    trust_remote_code: bool = False,
    arguments: Mapping[str, Any] | None = None,
) -> PreTrainedModel:
    """The weights, from safetensors only. dtype: None leaves that of the files. arguments: more of from_pretrained's.

    Raises:
        ModelFolderError: if the folder's architecture has no causal language model, or its weights cannot be read.
        MissingPackageError: if a quantised model needs a package.
    """
    refuse_adapter(role, path)
    try:
        return AutoModelForCausalLM.from_pretrained(
            path,
            dtype="auto" if dtype is None else torch_dtype(dtype),
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
            **(arguments or {}),
        )
    except ImportError as error:
        raise MissingPackageError(f"{role} {path!r} needs a package: {first_line(error)}") from error
    except (OSError, ValueError, KeyError, SafetensorError) as error:  # the last of a file that is not whole
        raise ModelFolderError(
            f"{role} {path!r} cannot be loaded as a causal language model: {first_line(error)}"
        ) from error


def untrained_causal_lm(role: str, path: str, dtype: DtypeName, seed: int) -> PreTrainedModel:
    """A model with the folder's configuration and the weights that `seed` initialises."""
    config = load_config(role, path)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch_dtype(dtype))
    if (Path(path) / "generation_config.json").is_file():  # as from_pretrained would: it names the stops
        model.generation_config = GenerationConfig.from_pretrained(path)
    return model
