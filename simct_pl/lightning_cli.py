"""`fit` and `validate`: recipes through LightningCLI, with OmegaConf interpolation and errors that fit on one screen.

A recipe is LightningCLI's config under a better name: components by class_path/init_args, types checked from
constructors. `--recipe` may be repeated; later files and `--key value` overlay earlier ones.
"""

from __future__ import annotations

import difflib
import logging
import os
import re
import traceback
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import yaml
from jsonargparse import ActionConfigFile
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import MLFlowLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from typing_extensions import override

from simct_pl.errors import MissingFileError, RecipeError, SimctError
from simct_pl.export import check_parent
from simct_pl.module import DistillModule
from simct_pl.run_info import RunInfo, installed_versions, project_commit
from simct_pl.summary import TRACKING_URI, print_summary

PACKAGE = Path(__file__).resolve().parent
RECIPE_FLAGS = ("--recipe", "--config", "-c")
ARTIFACTS = "runs/mlflow-artifacts"


def run(arguments: list[str]) -> int:
    """Run a trainer command, e.g. ["fit", "--recipe", "quickstart"].

    Raises:
        SimctError: for anything in the recipe or the data that the user can put right.
    """
    recipes = _resolve_recipes(arguments)
    quiet_libraries()
    if not OmegaConf.has_resolver("asset"):
        OmegaConf.register_resolver("asset", lambda name: str(PACKAGE / "assets" / name))
    for recipe in recipes:
        _check_yaml(recipe)
    try:
        SimctCLI(recipe_names=[Path(recipe).stem for recipe in recipes], args=arguments)
    except OmegaConfBaseException as error:
        raise RecipeError(f"A value cannot be interpolated: {error}") from error
    except (MisconfigurationException, ValueError) as error:
        if isinstance(error, SimctError) or not _raised_by_lightning(error):
            raise
        raise RecipeError(f"Lightning refuses the recipe: {str(error).strip()}") from error
    return 0


def _raised_by_lightning(error: BaseException) -> bool:
    """Whether Lightning itself raised it, about the trainer's options; not our code, nor a library below."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return str(frame.f_globals.get("__name__", "")).startswith("lightning")


def recipe_folder() -> Path:
    """Where the shipped recipes are: in the wheel, or beside the package in a checkout."""
    bundled = PACKAGE / "_recipes"
    return bundled if bundled.is_dir() else PACKAGE.parent / "recipes"


def find_recipe(name: str) -> Path:
    """A recipe by path, or by the name of a shipped one ("quickstart", "ablations/exact").

    Raises:
        MissingFileError: naming the nearest shipped recipe.
    """
    folder = recipe_folder()
    for candidate in (Path(name), folder / name, folder / f"{name}.yaml"):
        if candidate.is_file():
            return candidate
    shipped = sorted(str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.yaml"))
    near = difflib.get_close_matches(Path(name).stem, shipped, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise MissingFileError(f"Recipe {name!r} is neither a file nor a shipped recipe ({', '.join(shipped)}).{hint}")


def _resolve_recipes(arguments: list[str]) -> list[str]:
    """Replace the names of shipped recipes by their paths, in place; returns the paths."""
    recipes = []
    for i, argument in enumerate(arguments):
        flag, equals, value = argument.partition("=")
        if flag not in RECIPE_FLAGS:
            continue
        if equals:
            recipes.append(str(find_recipe(value)))
            arguments[i] = f"{flag}={recipes[-1]}"
        elif i + 1 < len(arguments):
            recipes.append(str(find_recipe(arguments[i + 1])))
            arguments[i + 1] = recipes[-1]
    return recipes


def _check_yaml(recipe: str) -> None:
    try:
        content = yaml.safe_load(Path(recipe).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"Recipe {recipe!r} is not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise RecipeError(f"Recipe {recipe!r} holds {content!r:.40}; expected keys such as model, data and trainer.")


def quiet_libraries() -> None:
    """Silence chatter that says nothing about a run."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    for name in ("alembic", "mlflow", "httpx", "datasets"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda record: "Tip:" not in record.getMessage()
    )
    # Prompts are cheap to load; rollouts are what takes time.
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
    warnings.filterwarnings("ignore", message=".*have not been set for this class.*")


NOISE = re.compile(r"Union subtypes|^\s*Subtypes:|<class 'NoneType'>|^\s*Given value")
UNKNOWN_KEY = re.compile(r"[Oo]ption '([\w.]+)'|[Uu]nrecognized arguments: --([\w.]+)")
BAD_CHOICE = re.compile(r"Literal\[(.+)\]\. Got value: (\S+)")


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


def _first_own_error(error: BaseException | None) -> SimctError | None:
    """The SimctError that an exception was raised from, however deep."""
    while error is not None and not isinstance(error, SimctError):
        error = error.__cause__ or error.__context__
    return error


class SimctCLI(LightningCLI):
    """LightningCLI with recipes, MLflow by default, and what ran attached to the module for the recipe log."""

    def __init__(self, recipe_names: list[str], args: list[str]) -> None:
        self.run_name = "+".join(recipe_names) or "unnamed"
        super().__init__(
            model_class=L.LightningModule,
            datamodule_class=L.LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=None,
            seed_everything_default=0,
            # Held-out prompts are scored before a fit (before_fit), so nothing needs a sanity check; and tensors that
            # are made then must be usable in training, which inference mode forbids.
            trainer_defaults={"num_sanity_val_steps": 0, "inference_mode": False},
            parser_class=RecipeParser,
            parser_kwargs={"parser_mode": "omegaconf+"},
            auto_configure_optimizers=False,
            args=args,
        )

    @override
    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        parser = self.parser_class(**kwargs)
        parser.add_argument(
            "-c",
            "--config",
            "--recipe",
            action=ActionConfigFile,
            help="Recipe: a YAML file, or the name of a shipped one.",
        )
        return parser

    @override
    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Without LightningCLI's warning about args beside a command line: the command line is where they come from."""
        self.config = parser.parse_args(args)

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        own = {"model", "dataloaders", "train_dataloaders", "val_dataloaders", "datamodule"}
        return {"fit": own, "validate": own}

    @override
    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        config = self._get(self.config_init, "trainer")
        root = Path(config.get("default_root_dir") or f"runs/{self.run_name}")
        check_parent(root / "recipe.yaml")
        if config.get("logger") is None:
            Path(ARTIFACTS).mkdir(parents=True, exist_ok=True)
            kwargs["logger"] = MLFlowLogger(
                experiment_name="simct_pl",
                run_name=self.run_name,
                tracking_uri=TRACKING_URI,
                artifact_location=Path(ARTIFACTS).absolute().as_uri(),
            )
        kwargs["default_root_dir"] = str(root)
        return super().instantiate_trainer(**kwargs)

    @override
    def instantiate_classes(self) -> None:
        """Let what a component refuses reach the user as it was said, not as one of a union's failed alternatives."""
        try:
            super().instantiate_classes()
        except (ValueError, TypeError) as error:
            raise (_first_own_error(error) or error) from None

    def before_fit(self) -> None:
        """Score the held-out prompts first: a curve needs a step 0."""
        if self.datamodule is not None and isinstance(self.model, DistillModule):
            self.trainer.validate(self.model, datamodule=self.datamodule, verbose=False)

    def after_fit(self) -> None:
        if not isinstance(self.model, DistillModule):
            return
        if self.model.history and self.model.history[-1].step != self.trainer.global_step:
            self.trainer.validate(self.model, datamodule=self.datamodule, verbose=False)
        if self.trainer.is_global_zero:
            print_summary(self.model, self.trainer)

    @override
    def after_instantiate_classes(self) -> None:
        self._dump_config()
        recipe = yaml.safe_dump(self.config_dump, sort_keys=False, allow_unicode=True)
        if isinstance(self.model, DistillModule):
            self.model.run_info = RunInfo(self.run_name, recipe, installed_versions(), project_commit())
