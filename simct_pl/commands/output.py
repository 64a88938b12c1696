"""What the commands that write model folders share: refusing to replace one, special ids, progress."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from simct_pl.errors import RecipeError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


def user_path(text: str) -> Path:
    """A path of the command line; a shell leaves the ~ of --option=~/folder alone."""
    return Path(text).expanduser()


def require_new(output: Path) -> None:
    """Refuse to write where something is, before any work is done.

    Raises:
        RecipeError: if `output` exists; these commands never replace a model.
    """
    if output.exists():
        raise RecipeError(f"output {str(output)!r} exists; remove it or give another folder")


def folder_size(path: Path) -> str:
    """Return the size of the files in a folder, as a person reads it."""
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return f"{size / 1e6:.0f} MB" if size >= 1e6 else f"{size / 1e3:.0f} kB"


def set_special_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    """Write the tokenizer's bos, eos and pad (eos where it has none) into both of a model's configurations."""
    from transformers import GenerationConfig

    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": pad}
    for name, value in ids.items():
        setattr(model.config, name, value)
    model.generation_config = GenerationConfig(**ids)


def report(line: str) -> None:
    """Print one line of progress."""
    print(line, file=sys.stderr, flush=True)
