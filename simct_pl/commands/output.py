"""What the commands that write model folders share: special ids, sizes, progress."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


def user_path(text: str) -> Path:
    """A path of the command line; a shell leaves the ~ of --option=~/folder alone."""
    return Path(text).expanduser()


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
