"""Finding and opening a tokenizer's files.

In: a path or a hub name. Out: a PreTrainedTokenizerFast around the pipeline of tokenizer.json, with the control
tokens and the template that lie beside it, the eos ids of generation_config.json, and the model's number of rows.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simct_pl.errors import MissingFileError, ModelFolderError, UnsupportedTokenizerError, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_HUB_FILES = ("tokenizer*", "*.jinja", "special_tokens_map.json", "generation_config.json", "config.json")


def load_tokenizer(path: str) -> tuple[PreTrainedTokenizerFast, list[int], int | None]:
    """(tokenizer, eos ids of generation_config.json, rows of the embeddings by config.json) of a model folder, a
    tokenizer.json or a hub name.

    Raises:
        MissingFileError: if nothing is there. ModelFolderError: if it holds no tokenizer that can be read.
        UnsupportedTokenizerError: for a WordPiece vocabulary without tokenizer.json.
    """
    location = Path(path).expanduser()
    if location.is_file():
        folder, tokenizer_file = location.parent, location
    else:
        folder = location if location.is_dir() else _from_hub(path)
        tokenizer_file = folder / "tokenizer.json"
    if tokenizer_file.suffix == ".json" and tokenizer_file.is_file():
        tokenizer = _open_fast(path, tokenizer_file, folder)
    else:
        tokenizer = _convert(path, folder, tokenizer_file)
    return tokenizer, _generation_stop_ids(folder), _num_rows(folder)


def _from_hub(name: str) -> Path:
    """A local snapshot of a hub repository's tokenizer files."""
    if not _HUB_NAME.fullmatch(name):
        raise MissingFileError(
            f"{name!r} does not exist. Give a model folder, a tokenizer.json, or a hub name such as org/model."
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=list(_HUB_FILES)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise MissingFileError(
            f"{name!r} is no local path, and the hub did not give it: {first_line(error)} "
            "Check the name and the network, or give a local folder."
        ) from error


def _open_fast(path: str, tokenizer_file: Path, folder: Path) -> PreTrainedTokenizerFast:
    from transformers import AddedToken, PreTrainedTokenizerFast

    # The pipeline comes from tokenizer.json as it is; the class is told only which tokens are control tokens.
    config = _read_json(folder / "tokenizer_config.json")
    settings: dict[str, Any] = {name: _content(config[name]) for name in _SPECIAL_NAMES if config.get(name)}
    if extra := config.get("additional_special_tokens") or config.get("extra_special_tokens"):
        values = extra.values() if isinstance(extra, dict) else extra
        settings["additional_special_tokens"] = [_content(token) for token in values]
    if added := config.get("added_tokens_decoder"):
        settings["added_tokens_decoder"] = {int(token_id): AddedToken(**entry) for token_id, entry in added.items()}
    # Given only when set: merely naming them makes the class rebuild the post-processor.
    settings |= {name: True for name in ("add_bos_token", "add_eos_token") if config.get(name)}
    try:
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(tokenizer_file), **settings)
    except Exception as error:  # the Rust side raises plain Exception for a malformed file
        raise ModelFolderError(
            f"{path!r}: {tokenizer_file.name} cannot be read as a tokenizer: {first_line(error)}"
        ) from error
    # A tokenizer.json can hold the truncation of somebody's last call, which would silently cut texts.
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.chat_template = _chat_template(config, folder)
    return tokenizer


def _convert(path: str, folder: Path, file: Path) -> PreTrainedTokenizerFast:
    """A SentencePiece .model through transformers."""
    if (folder / "vocab.txt").is_file():
        raise UnsupportedTokenizerError(
            f"{path!r} holds a WordPiece vocabulary (vocab.txt), whose tokens have no exact bytes. Use a model with a "
            "byte-level BPE or SentencePiece-like tokenizer."
        )
    model_file = file if file.suffix == ".model" and file.is_file() else folder / "tokenizer.model"
    if not model_file.is_file():
        found = sorted(entry.name for entry in folder.iterdir())[:8]
        raise ModelFolderError(
            f"{path!r} holds no tokenizer: expected tokenizer.json (or tokenizer.model), found {found or 'nothing'}. "
            "Save one there with tokenizer.save_pretrained()."
        )
    from transformers import LlamaTokenizerFast

    remedy = "Install sentencepiece and protobuf, or save a tokenizer.json there with save_pretrained()."
    try:
        import sentencepiece  # noqa: F401  # without it transformers takes the file for tiktoken ranks

        tokenizer = LlamaTokenizerFast.from_pretrained(str(model_file.parent))
    except (ImportError, OSError, ValueError, KeyError) as error:
        raise ModelFolderError(
            f"{path!r}: {model_file.name} cannot be converted: {first_line(error)} {remedy}"
        ) from error
    tokenizer.chat_template = _chat_template(_read_json(folder / "tokenizer_config.json"), folder)
    return tokenizer


def _chat_template(config: dict[str, Any], folder: Path) -> str | None:
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):  # several named ones
        named = {entry["name"]: entry["template"] for entry in template}
        template = named.get("default")
    return template


def _generation_stop_ids(folder: Path) -> list[int]:
    eos = _read_json(folder / "generation_config.json").get("eos_token_id")
    if eos is None:
        return []
    return list(eos) if isinstance(eos, list) else [eos]


def _num_rows(folder: Path) -> int | None:
    config = _read_json(folder / "config.json")
    return {**config, **(config.get("text_config") or {})}.get("vocab_size")


def _read_json(file: Path) -> dict[str, Any]:
    """An optional file beside the tokenizer; empty if there is none."""
    if not file.is_file():
        return {}
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelFolderError(f"{file.name} in {str(file.parent)!r} is not valid JSON: {error}") from error


def _content(token: str | dict[str, Any]) -> str:
    return token if isinstance(token, str) else token["content"]
