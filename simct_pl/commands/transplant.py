"""`python -m simct_pl transplant`: a model folder and another family's tokenizer in, a model folder with that one out.

The method is in simct_pl/transplant.py. It has no randomness: the same folders give the same rows.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simct_pl.commands.output import folder_size, report, require_new, set_special_ids
from simct_pl.errors import MissingFileError, MissingStopTokenError, ModelFolderError, TokenizerError

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedTokenizerFast

    from simct_pl.transplant import Encode, RowPlan


def main(argv: Sequence[str]) -> int:
    """Transplant one model; see `--help`.

    Raises:
        SimctError: if a path is missing or is not what it should be, a tokenizer has no stop, or the output exists.
    """
    parser = argparse.ArgumentParser(
        prog="python -m simct_pl transplant",
        description="Put a model's body on another family's tokenizer. Each new embedding row (and row of an untied "
        "head) is the mean of the old rows of the pieces that the old tokenizer makes of the new token's bytes.",
    )
    parser.add_argument("--model", type=Path, required=True, metavar="DIR", help="the model, with its own tokenizer")
    parser.add_argument(
        "--tokenizer", type=Path, required=True, metavar="PATH", help="the new one: a folder, or its tokenizer.json"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="the folder to write; must not exist")
    parser.add_argument("--stop", metavar="TOKEN", help="the new token that ends a turn (default: its eos_token)")
    arguments = parser.parse_args(argv)
    transplant(arguments.model, arguments.tokenizer, arguments.output, arguments.stop)
    return 0


def transplant(model_folder: Path, tokenizer_path: Path, output: Path, stop: str | None = None) -> RowPlan:
    """Write the transplanted model and return where its rows came from.

    Raises:
        MissingFileError, ModelFolderError: if a path is missing, or is not a model or a tokenizer.
        MissingStopTokenError: if either tokenizer has no token that ends a turn.
        RecipeError: if `output` exists.
    """
    from transformers import AutoModelForCausalLM

    from simct_pl.export import export_model
    from simct_pl.models import check_model_path
    from simct_pl.tokenization.bytes import TokenBytes
    from simct_pl.transplant import plan_rows, replace_vocabulary

    start = time.perf_counter()
    check_model_path("model", str(model_folder))
    require_new(output)
    old, new = load_tokenizer(model_folder), load_tokenizer(tokenizer_path)
    if stop is not None:
        if new.backend_tokenizer.token_to_id(stop) is None:
            raise MissingStopTokenError(f"--stop {stop!r} is not a token of {str(tokenizer_path)!r}")
        new.eos_token = stop
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype="auto", use_safetensors=True)
    roles = matching_roles(old, new, model.generation_config)
    old_table = TokenBytes.from_tokenizer(old)
    report(f"finding the old pieces of {len(new)} tokens")
    plan = plan_rows(TokenBytes.from_tokenizer(new), old_table, encoder(old), roles)
    replace_vocabulary(model, plan, len(old_table))
    set_special_ids(model, new)
    template = set_chat_template(old, new, roles)
    export_model(model, new, output)
    report_rows(plan)
    report(f"chat template: {template}; stop: {new.eos_token}")
    size = f"{model.num_parameters() / 1e6:.1f}M parameters, {folder_size(output)}"
    report(f"{output}: {size}, {time.perf_counter() - start:.0f} s")
    return plan


def load_tokenizer(path: Path) -> PreTrainedTokenizerFast:
    """Load a tokenizer.json as it is, with the special tokens and the template beside it.

    AutoTokenizer is not used: it rebuilds the pipeline of some families, and then gives other ids.

    Raises:
        MissingFileError: if the path does not exist.
        ModelFolderError: if there is no tokenizer.json.
    """
    from transformers import PreTrainedTokenizerFast

    if not path.exists():
        raise MissingFileError(f"tokenizer {str(path)!r} does not exist; give a folder, or its tokenizer.json")
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise ModelFolderError(f"{str(path)!r} has no tokenizer.json; a SentencePiece .model has to be converted first")
    config = read_json(file.with_name("tokenizer_config.json"))
    special = {name: token_text(config.get(name)) for name in ("bos_token", "eos_token", "pad_token", "unk_token")}
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(file), **{k: v for k, v in special.items() if v is not None})
    jinja = file.with_name("chat_template.jinja")
    tokenizer.chat_template = jinja.read_text(encoding="utf-8") if jinja.is_file() else config.get("chat_template")
    return tokenizer


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON object, empty when the file does not exist."""
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except json.JSONDecodeError as error:
        raise TokenizerError(f"{str(path)!r} is not JSON: {error}") from error


def token_text(entry: str | dict[str, Any] | None) -> str | None:
    """Return a special token's text; the files hold it as a string or as an AddedToken's fields."""
    return entry["content"] if isinstance(entry, dict) else entry


def encoder(tokenizer: PreTrainedTokenizerFast) -> Encode:
    """Return the tokenizer as a function from texts to ids in which no text becomes a control token."""
    backend = tokenizer.backend_tokenizer
    backend.encode_special_tokens = True
    return lambda texts: [found.ids for found in backend.encode_batch(texts, add_special_tokens=False)]


def matching_roles(
    old: PreTrainedTokenizerFast, new: PreTrainedTokenizerFast, generation_config: GenerationConfig
) -> dict[int, int]:
    """Return new special id → old special id for the beginning of text and the stop, the stop winning.

    Raises:
        MissingStopTokenError: if either side has no stop.
    """
    configured = generation_config.eos_token_id
    old_stop = configured[0] if isinstance(configured, list) else configured
    old_stop = old.eos_token_id if old_stop is None else old_stop
    for name, stop in (("the model", old_stop), ("the new tokenizer", new.eos_token_id)):
        if stop is None:
            raise MissingStopTokenError(f"{name} has no token that ends a turn: name an eos_token in its configuration")
    if new.pad_token_id is None:
        new.pad_token = new.eos_token
    roles = {}
    if new.bos_token_id is not None and old.bos_token_id is not None:
        roles[new.bos_token_id] = old.bos_token_id
    roles[new.eos_token_id] = old_stop
    return roles


def set_chat_template(old: PreTrainedTokenizerFast, new: PreTrainedTokenizerFast, roles: dict[int, int]) -> str:
    """Give the new tokenizer a template and return where it comes from."""
    from simct_pl.transplant import carry_chat_template

    old_name, new_name = old.backend_tokenizer.id_to_token, new.backend_tokenizer.id_to_token
    renamed = {str(old_name(before)): str(new_name(after)) for after, before in roles.items()}
    new.chat_template, source = carry_chat_template(old, new, renamed)
    return source


def report_rows(plan: RowPlan) -> None:
    """Print how many rows came from where."""
    from simct_pl.transplant import RowSource

    total = len(plan.sources)
    for source in RowSource:
        report(f"{source:>10}: {plan.count(source):7d} rows, {plan.count(source) / total:6.1%}")
