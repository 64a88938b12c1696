"""A model folder that transformers and vLLM load: weights, tokenizer, chat template, generation config; written whole
or not at all.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from safetensors import SafetensorError
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from simct_pl.files.atomic import whole_folder, write_errors
from simct_pl.files.outputs import check_output

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
    card: str | None = None,
) -> Path:
    """Write a model folder atomically, replacing one that is there; returns its absolute path.

    Args:
        model: saved as safetensors with its config and generation config.
        tokenizer: saved next to it, unless tokenizer_source is a folder with tokenizer.json, whose files are copied
            unchanged.
        state_dict: whole weights to write instead of the model's own, which may be sharded.
        card: the text of README.md.

    Raises:
        ExportError: if it cannot be written; what was there before is untouched.
    """
    output = check_output(Path(output))
    source = Path(tokenizer_source) if tokenizer_source is not None else None
    with whole_folder(output) as folder, write_errors(output, SafetensorError):
        model.save_pretrained(folder, state_dict=state_dict)
        if source is not None and (source / "tokenizer.json").is_file():
            for name in TOKENIZER_FILES:
                if (source / name).is_file():
                    shutil.copyfile(source / name, folder / name)
        else:
            tokenizer.save_pretrained(folder)
        if card is not None:
            (folder / "README.md").write_text(card, encoding="utf-8")
    return output
