"""RecipeParser: what is wrong with a recipe on a few lines, with the nearest name for a misspelt key or choice."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import yaml
from jsonargparse import get_loader, set_loader
from lightning.pytorch.cli import LightningArgumentParser
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from typing_extensions import override

from simct_pl.config.recipes import PACKAGE
from simct_pl.errors import RecipeError

NOISE = re.compile(r"Union subtypes|^\s*Subtypes:|<class 'NoneType'>|^\s*Given value")
UNKNOWN_KEY = re.compile(r"[Oo]ption '([\w.]+)'|[Uu]nrecognized arguments: --([\w.]+)")
BAD_CHOICE = re.compile(r"Literal\[(.+)\]\. Got value: (\S+)")
PARSER_MODE = "omegaconf+"  # interpolation across overlays and the command line
load_yaml = get_loader("yaml")


def load_value(text: str) -> Any:
    """A file, or one value of it once more: one that begins with `#` is the text that had quotes around it, and no
    comment.
    """
    return text if text.lstrip().startswith("#") and "\n" not in text else load_yaml(text)


set_loader(PARSER_MODE, load_value, (yaml.YAMLError,))


@contextmanager
def interpolation() -> Iterator[None]:
    """Let recipes say `${asset:quickstart/teacher}` for a folder that ships with the package.

    Raises:
        RecipeError: for a `${…}` that leads nowhere.
    """
    if not OmegaConf.has_resolver("asset"):
        OmegaConf.register_resolver("asset", lambda name: str(PACKAGE / "assets" / name))
    try:
        yield
    except OmegaConfBaseException as error:
        raise RecipeError(f"A value cannot be interpolated: {error}") from error


class RecipeParser(LightningArgumentParser):
    """Turns argparse's exit into a RecipeError, with the nearest known name and without jsonargparse's inner
    workings.
    """

    @override
    def error(self, message: str, ex: Exception | None = None) -> Any:
        lines = [line.rstrip() for line in str(message).splitlines() if line.strip() and not NOISE.search(line)]
        raise RecipeError("\n".join(lines) + _nearest_name("\n".join(lines), self))


def _nearest_name(message: str, parser: LightningArgumentParser) -> str:
    """ "Did you mean …?" for an unknown key or choice; empty if nothing is near or the message already says it."""
    if "Did you mean" in message:
        return ""
    if choice := BAD_CHOICE.search(message):
        wrong, known = choice.group(2), re.findall(r"'([^']+)'", choice.group(1))
    elif key := UNKNOWN_KEY.search(message):
        wrong, known = key.group(1) or key.group(2), _known_keys(parser)
    else:
        return ""
    near = next((found for part in (wrong, wrong.split(".")[0]) if (found := _near(part, known))), [])
    return f". Did you mean {near[0]!r}?" if near else ""


def _near(name: str, known: list[str]) -> list[str]:
    return difflib.get_close_matches(name, known, n=1, cutoff=0.6)


def _known_keys(parser: LightningArgumentParser) -> list[str]:
    """Every key of the parser and of its subcommands."""
    keys = []
    for action in parser._actions:
        if isinstance(action.choices, dict):
            keys += [key for sub in action.choices.values() for key in _known_keys(sub)]
        keys += [action.dest, action.dest.split(".")[-1]]
    return keys
