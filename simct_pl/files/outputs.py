"""Whether an output can be written, asked before the work that it is the output of.

In: a path as the user gave it. Out: the absolute path, whose parent folder exists and takes files, or an error.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from simct_pl.errors import ExportError, RecipeError


def check_new(output: Path) -> None:
    """Refuse to write where something is.

    Raises:
        RecipeError: if `output` exists. ExportError: if its parent cannot be made or written to.
    """
    if output.exists():
        raise RecipeError(f"output {str(output)!r} exists; remove it or give another folder")
    check_parent(output)


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
    exported = ("config.json", "adapter_config.json")
    return any((folder / name).is_file() for name in exported) or not any(folder.iterdir())
