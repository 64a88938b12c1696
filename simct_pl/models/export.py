"""A model folder that transformers and vLLM load: weights, tokenizer, chat template, generation config; written whole
or not at all.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from safetensors import SafetensorError
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from simct_pl.errors import ExportError

# Copied as they are: saving a loaded tokenizer again may rebuild its pipeline.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)


def export_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    output: str | Path,
    tokenizer_source: str | Path | None = None,
    state_dict: dict[str, Tensor] | None = None,
) -> Path:
    """Write a model folder atomically, replacing one that is there.

    Args:
        model: saved as safetensors with its config and generation config.
        tokenizer: saved next to it, unless tokenizer_source is a folder with tokenizer.json, whose files are copied
            unchanged.
        state_dict: whole weights to write instead of the model's own, which may be sharded.
    """

    def write(folder: Path) -> None:
        model.save_pretrained(folder, state_dict=state_dict)
        source = Path(tokenizer_source) if tokenizer_source is not None else None
        if source is not None and (source / "tokenizer.json").is_file():
            for name in TOKENIZER_FILES:
                if (source / name).is_file():
                    shutil.copyfile(source / name, folder / name)
        else:
            tokenizer.save_pretrained(folder)

    return write_folder(Path(output), write)


def write_folder(output: Path, write: Callable[[Path], None]) -> Path:
    """Let `write` fill a temporary sibling and rename it to output; a failure leaves what was there untouched."""
    output = check_output(output)
    staging = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent))
    try:
        fresh = staging / "new"
        fresh.mkdir()
        write(fresh)
        _put_in_place(fresh, output, staging / "old")
    except (OSError, SafetensorError) as error:
        raise ExportError(f"{output} cannot be written: {error}. What was there before is untouched.") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return output


def _put_in_place(fresh: Path, output: Path, old: Path) -> None:
    """Rename `fresh` to output, and what was there to `old`, or back if that fails."""
    if output.exists():
        output.rename(old)
    try:
        fresh.rename(output)
    except OSError:
        if old.exists():
            old.rename(output)
        raise


def check_output(output: Path, sources: Sequence[str] = ()) -> Path:
    """The absolute path of a folder that can be made or replaced; its parent exists afterwards.

    sources: models that a run starts from, which its output must not replace.

    Raises:
        ExportError: if one of these or something else than a model is there, or the parent cannot be made or written
            to.
    """
    output = output.expanduser().absolute()
    if output.resolve() in [Path(source).expanduser().resolve() for source in sources]:
        raise ExportError(f"{output} is a model that the run starts from. Choose another output folder.")
    if output.exists() and not (output.is_dir() and _is_replaceable(output)):
        raise ExportError(f"{output} exists and is no model folder; it is left alone. Choose another output folder.")
    check_parent(output)
    return output


def check_file(output: Path) -> Path:
    """The absolute path of a file that can be made or replaced; its parent exists afterwards.

    Raises:
        ExportError: if a folder is there, or the parent cannot be made or written to.
    """
    output = output.expanduser().absolute()
    if output.is_dir():
        raise ExportError(f"{output} is a folder; expected the path of a file. Choose another output.")
    check_parent(output)
    return output


def check_parent(output: Path) -> None:
    """Make the parent of an output.

    Raises:
        ExportError: if it cannot be made or written to.
    """
    output = output.expanduser().absolute()
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ExportError(f"{output.parent} cannot be made: {error}. Choose another output folder.") from error
    if not os.access(output.parent, os.W_OK):
        raise ExportError(f"{output.parent} is not writable. Choose another output folder.")


def _is_replaceable(folder: Path) -> bool:
    """Whether a folder is empty or an earlier export; nobody's other files are ever removed."""
    return (folder / "config.json").is_file() or not any(folder.iterdir())
