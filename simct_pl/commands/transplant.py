"""`python -m simct_pl transplant`: a model folder and another family's tokenizer in, a model folder with that one out.

The method is in simct_pl/models/transplant.py. It has no randomness: the same folders give the same rows.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from simct_pl.commands.output import folder_size, report, set_special_ids, user_path
from simct_pl.errors import MissingStopTokenError
from simct_pl.files.outputs import check_new

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from simct_pl.models.transplant import Encode, RowPlan


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
    parser.add_argument(
        "--model", type=user_path, required=True, metavar="DIR", help="the model, with its own tokenizer"
    )
    parser.add_argument(
        "--tokenizer", required=True, metavar="PATH", help="the new one: a folder, its tokenizer.json, or a hub name"
    )
    parser.add_argument(
        "--output", type=user_path, required=True, metavar="DIR", help="the folder to write; must not exist"
    )
    parser.add_argument("--stop", metavar="TOKEN", help="the new token that ends a turn (default: its eos_token)")
    arguments = parser.parse_args(argv)
    transplant(arguments.model, arguments.tokenizer, arguments.output, arguments.stop)
    return 0


def transplant(model_folder: Path, tokenizer_path: str, output: Path, stop: str | None = None) -> RowPlan:
    """Write the transplanted model and return where its rows came from.

    Raises:
        MissingFileError, ModelFolderError: if a path is missing, or is not a model or a tokenizer.
        MissingStopTokenError: if either tokenizer has no token that ends a turn.
        RecipeError: if `output` exists.
    """
    from simct_pl.models.export import export_model
    from simct_pl.models.loading import check_model_path, load_causal_lm
    from simct_pl.models.transplant import plan_rows, replace_vocabulary
    from simct_pl.tokenization.bytes import TokenBytes
    from simct_pl.tokenization.loading import load_tokenizer

    start = time.perf_counter()
    check_model_path("model", str(model_folder))
    check_new(output)
    old, old_stop_ids, num_rows = load_tokenizer(str(model_folder))
    new, *_ = load_tokenizer(tokenizer_path)
    if stop is not None:
        if new.backend_tokenizer.token_to_id(stop) is None:
            raise MissingStopTokenError(f"--stop {stop!r} is not a token of {tokenizer_path!r}")
        new.eos_token = stop
    roles = matching_roles(old, new, old_stop_ids)
    model = load_causal_lm("model", str(model_folder), None)
    old_table = TokenBytes.from_tokenizer(old).up_to(num_rows)
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


def encoder(tokenizer: PreTrainedTokenizerFast) -> Encode:
    """Return the tokenizer as a function from texts to ids in which no text becomes a control token."""
    backend = tokenizer.backend_tokenizer
    backend.encode_special_tokens = True
    return lambda texts: [found.ids for found in backend.encode_batch(texts, add_special_tokens=False)]


def matching_roles(
    old: PreTrainedTokenizerFast, new: PreTrainedTokenizerFast, old_stop_ids: Sequence[int]
) -> dict[int, int]:
    """Return new special id → old special id for the beginning of text and the stop, the stop winning.

    Args:
        old_stop_ids: of the model's generation configuration; its eos_token counts where there are none.

    Raises:
        MissingStopTokenError: if either side has no stop.
    """
    old_stop = old_stop_ids[0] if old_stop_ids else old.eos_token_id
    for name, stop in (("the model", old_stop), ("the new tokenizer", new.eos_token_id)):
        if stop is None:
            raise MissingStopTokenError(
                f"{name} has no token that ends a turn: name an eos_token in its tokenizer_config.json"
                + (", or give --stop" if name == "the new tokenizer" else "")
            )
    roles = {}
    if new.bos_token_id is not None and old.bos_token_id is not None:
        roles[new.bos_token_id] = old.bos_token_id
    roles[new.eos_token_id] = old_stop
    return roles


def set_chat_template(old: PreTrainedTokenizerFast, new: PreTrainedTokenizerFast, roles: dict[int, int]) -> str:
    """Give the new tokenizer a template and return where it comes from."""
    from simct_pl.models.transplant import carry_chat_template

    old_name, new_name = old.backend_tokenizer.id_to_token, new.backend_tokenizer.id_to_token
    renamed = {str(old_name(before)): str(new_name(after)) for after, before in roles.items()}
    new.chat_template, source = carry_chat_template(old, new, renamed)
    return source


def report_rows(plan: RowPlan) -> None:
    """Print how many rows came from where."""
    from simct_pl.models.transplant import RowSource

    total = len(plan.sources)
    for source in RowSource:
        report(f"{source:>10}: {plan.count(source):7d} rows, {plan.count(source) / total:6.1%}")
