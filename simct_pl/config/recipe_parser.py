"""RecipeParser: what is wrong with a recipe on a few lines, with the nearest name for a misspelt key or choice."""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import yaml
from jsonargparse import Namespace, get_loader, set_loader
from lightning.pytorch.cli import LightningArgumentParser
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from typing_extensions import override

from simct_pl.config.recipes import PACKAGE
from simct_pl.errors import RecipeError

NOISE = re.compile(r"Union subtypes|^\s*Subtypes:|<class 'NoneType'>|^\s*Given value")
UNKNOWN_KEY = re.compile(r"[Oo]ption '([\w.]+)'|[Uu]nrecognized arguments: --([\w.]+)")
BAD_CHOICE = re.compile(r"Literal\[(.+)\]\. Got value: (\S+)")
STAGES = ("fit", "validate", "test")
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

    run_folder: where a logger writes that must be told, if the recipe has no default_root_dir.
    """

    run_folder = "runs/unnamed"

    @override
    def validate(self, namespace: Namespace, *args: Any, **kwargs: Any) -> None:
        """As jsonargparse does, after the loggers that need a folder have one: they are named without it."""
        for stage in (namespace, *(namespace.get(name) for name in STAGES)):
            if stage is not None and "trainer" in stage:
                _give_folders(stage.trainer, self.run_folder)
        super().validate(namespace, *args, **kwargs)

    @override
    def error(self, message: str, ex: Exception | None = None) -> Any:
        lines = [line.rstrip() for line in str(message).splitlines() if line.strip() and not NOISE.search(line)]
        raise RecipeError("\n".join(lines) + _nearest_name("\n".join(lines), self))


def _give_folders(trainer: Namespace, run_folder: str) -> None:
    """Set save_dir of the loggers whose constructor asks for it, such as TensorBoardLogger and CSVLogger."""
    loggers = trainer.get("logger")
    for logger in loggers if isinstance(loggers, list) else [loggers]:
        if not isinstance(logger, Namespace) or "class_path" not in logger:
            continue
        module, _, name = logger.class_path.rpartition(".")
        asked = inspect.signature(getattr(importlib.import_module(module), name)).parameters.get("save_dir")
        if asked is not None and asked.default is inspect.Parameter.empty:
            options = logger.get("init_args") or Namespace()
            if options.get("save_dir") is None:
                options["save_dir"] = trainer.get("default_root_dir") or run_folder
                logger["init_args"] = options


def _nearest_name(message: str, parser: LightningArgumentParser) -> str:
    """ "Did you mean …?" for an unknown key or choice; empty if nothing is near or the message already says it."""
    if "Did you mean" in message:
        return ""
    # A wrong choice is compared with the choices that the message lists, a wrong key with all keys.
    if choice := BAD_CHOICE.search(message):
        wrong, known = choice.group(2), re.findall(r"'([^']+)'", choice.group(1))
    elif key := UNKNOWN_KEY.search(message):
        wrong, known = key.group(1) or key.group(2), _known_keys(parser)
    else:
        return ""
    # The whole dotted key, or its first part, whichever is near something.
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
