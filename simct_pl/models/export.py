"""A model folder that transformers and vLLM load: weights, tokenizer, chat template, generation config; or an adapter
folder that PEFT loads. Written whole or not at all.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_info
from safetensors import SafetensorError
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from simct_pl.files.atomic import whole_folder, write_errors
from simct_pl.files.outputs import check_output
from simct_pl.models.adapter_folder import adapter_state, write_adapter
from simct_pl.models.merging import merged_state_dict

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
    with whole_folder(output) as folder, write_errors(output, SafetensorError):
        model.save_pretrained(folder, state_dict=state_dict)
        _write_tokenizer(tokenizer, folder, tokenizer_source)
        _write_card(card, folder)
    return output


def export(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    output: Path,
    tokenizer_source: str,
    adapter: bool,
    writes: bool,
    card: str | None = None,
) -> None:
    """Write a trained model, its adapters merged into it, or these alone. Collective where ranks share it.

    adapter: what PEFT loads, in place of a model. writes: whether this rank does; the others gather with it. card: see
    export_model.

    Raises:
        ExportError: see export_model.
    """
    if not adapter:
        weights = merged_state_dict(model, keep=writes)
        if writes:
            written = export_model(model, tokenizer, output, tokenizer_source, weights, card)
            rank_zero_info(f"Exported the model to {written}")
        return
    state = adapter_state(model, keep=writes)
    if not writes:
        return
    output = check_output(output)
    with whole_folder(output) as folder, write_errors(output, SafetensorError):
        write_adapter(model, state, folder)
        _write_tokenizer(tokenizer, folder, tokenizer_source)
        _write_card(card, folder)
    rank_zero_info(f"Exported the adapter to {output}")


def _write_card(card: str | None, folder: Path) -> None:
    if card is not None:
        (folder / "README.md").write_text(card, encoding="utf-8")


def _write_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path, tokenizer_source: str | Path | None) -> None:
    source = Path(tokenizer_source) if tokenizer_source is not None else None
    if source is None or not (source / "tokenizer.json").is_file():
        tokenizer.save_pretrained(folder)
        return
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
