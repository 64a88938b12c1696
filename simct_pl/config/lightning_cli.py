"""`fit`, `validate`, `test`: recipes by LightningCLI, with OmegaConf interpolation and errors that fit on one screen.

A recipe is LightningCLI's config under a better name: components by class_path/init_args, types checked from
constructors. `--recipe` may be repeated; later files and `--key value` overlay earlier ones.
"""

from __future__ import annotations

import logging
import os
import traceback
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, TypeVar

import lightning as L
import yaml
from jsonargparse import ActionConfigFile
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.utils.data import DataLoader
from typing_extensions import override

from simct_pl.checkpointing.folder import CheckpointProvider, SavedCheckpoint
from simct_pl.checkpointing.resume import NEVER, check_same_run, choose_checkpoint
from simct_pl.config.callback_package import install as install_callbacks
from simct_pl.config.recipe_parser import PARSER_MODE, RecipeParser, interpolation
from simct_pl.config.recipes import check_yaml, resolve_recipes
from simct_pl.config.summary import print_summary
from simct_pl.errors import CheckpointError, MissingPackageError, RecipeError, SimctError, first_line
from simct_pl.files.lock import sole_writer
from simct_pl.files.outputs import check_parent
from simct_pl.tracking.logger import RunLogger
from simct_pl.tracking.run_info import RunInfo, RunInfoReader
from simct_pl.training.module import DistillModule

ARTIFACTS = "runs/mlflow-artifacts"

CLI = TypeVar("CLI", bound="SimctCLI")


def open_recipes(arguments: list[str], kind: type[CLI], resume: str = NEVER) -> CLI:
    """Read recipes and make their components; what is then done with them depends on the kind of CLI.

    arguments: a trainer command's, such as ["fit", "--recipe", "quickstart"].

    Raises:
        SimctError: for anything in the recipe or the data that the user can put right.
    """
    arguments = list(arguments)
    recipes = resolve_recipes(arguments)
    quiet_libraries()
    install_callbacks()
    # YAML first: jsonargparse says less of a broken file.
    for recipe in recipes:
        check_yaml(recipe)
    try:
        with interpolation():
            return kind(recipe_names=[Path(recipe).stem for recipe in recipes], args=arguments, resume=resume)
    except (MisconfigurationException, ValueError) as error:
        if isinstance(error, SimctError) or not _raised_by_lightning(error):
            raise
        raise RecipeError(f"Lightning refuses the recipe: {str(error).strip()}") from error


def _raised_by_lightning(error: BaseException) -> bool:
    """Whether Lightning itself raised it, about the trainer's options; not our code, nor a library below."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return str(frame.f_globals.get("__name__", "")).startswith("lightning")


def quiet_libraries() -> None:
    """Silence chatter that says nothing about a run."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    for name in ("alembic", "mlflow", "httpx", "datasets"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda record: "Tip:" not in record.getMessage()
    )
    # Prompts are cheap to load; rollouts are what takes time.
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*`IterableDataset` has `__len__` defined.*")  # about several workers
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
    warnings.filterwarnings("ignore", message=".*have not been set for this class.*")


def artifact_location() -> str:
    """Where artifacts of the local runs go."""
    Path(ARTIFACTS).mkdir(parents=True, exist_ok=True)
    return Path(ARTIFACTS).absolute().as_uri()


def _first_own_error(error: BaseException | None) -> SimctError | None:
    """The SimctError that an exception was raised from, however deep; a package that is missing becomes one."""
    while error is not None and not isinstance(error, SimctError):
        if isinstance(error, ModuleNotFoundError):
            return MissingPackageError(f"A component of the recipe needs a package: {first_line(error)}")
        error = error.__cause__ or error.__context__
    return error


@contextmanager
def own_errors() -> Iterator[None]:
    """Let what a component refuses reach the user as it was said, not as one of a union's failed alternatives."""
    try:
        yield
    except (ValueError, TypeError, ModuleNotFoundError) as error:
        raise (_first_own_error(error) or error) from None


class SimctCLI(LightningCLI):
    """LightningCLI with recipes, MLflow by default, and what ran attached to the module for the recipe log."""

    def __init__(self, recipe_names: list[str], args: list[str], resume: str = NEVER) -> None:
        self.run_name, self.resume = "+".join(recipe_names) or "unnamed", resume
        self.checkpoint: SavedCheckpoint | None = None
        super().__init__(
            model_class=L.LightningModule,
            datamodule_class=L.LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=None,
            seed_everything_default=0,
            # Held-out prompts are scored before a fit (before_fit), so nothing needs a sanity check; and tensors that
            # are made then must be usable in training, which inference mode forbids.
            # Lightning's own checkpoints are neither exact nor checked: callbacks.Checkpoint takes their place.
            # A step takes seconds; to log it takes none, and a short run would be without any metrics.
            trainer_defaults={
                "num_sanity_val_steps": 0,
                "inference_mode": False,
                "enable_checkpointing": False,
                "log_every_n_steps": 1,
            },
            parser_class=RecipeParser,
            parser_kwargs={"parser_mode": PARSER_MODE},
            auto_configure_optimizers=False,
            args=args,
        )

    @override
    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        parser = RecipeParser(**kwargs)
        parser.run_folder = self._run_folder
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
        own.add("weights_only")
        return {"fit": own | {"ckpt_path"}, "validate": own, "test": own}

    @override
    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        config = self._get(self.config_init, "trainer")
        root = Path(config.get("default_root_dir") or self._run_folder)
        check_parent(root / "recipe.yaml")
        # A recipe without a logger gets ours; false stays off.
        if config.get("logger") in (None, True):
            kwargs["logger"] = RunLogger()
        kwargs["default_root_dir"] = str(root)
        trainer = super().instantiate_trainer(**kwargs)
        for logger in trainer.loggers:
            if isinstance(logger, RunLogger):
                logger.fill_in(root / "tracking", self.run_name, artifact_location())
        return trainer

    @override
    def instantiate_classes(self) -> None:
        with own_errors():
            super().instantiate_classes()

    @override
    def _run_subcommand(self, subcommand: str) -> None:
        """A fit has its folder for itself, from before anything is read in it until its last line is logged."""
        writes = subcommand == "fit" and self.trainer.is_global_zero
        root = Path(self.trainer.default_root_dir)
        with sole_writer(root, "fit", "trainer.default_root_dir") if writes else nullcontext():
            super()._run_subcommand(subcommand)

    def before_fit(self) -> None:
        """Choose where to begin. A new run scores the held-out prompts first: a curve needs a step 0."""
        provider = self._checkpoint_provider()
        # The checkpoint first: whether the loggers go on with an old run depends on it.
        self.checkpoint = choose_checkpoint(self.resume, provider.checkpoints(self.trainer) if provider else None)
        if self.checkpoint is not None:
            check_same_run(self.checkpoint, self._recipe(), self.trainer.world_size)
        for logger in self._run_loggers() if self.resume != NEVER else ():
            logger.continue_run(from_checkpoint=self.checkpoint is not None)
        if self.checkpoint is None and self.datamodule is not None and isinstance(self.model, DistillModule):
            with ExitStack() as stack:
                for logger in self._run_loggers():
                    stack.enter_context(logger.going_on())
                self.trainer.validate(self.model, datamodule=self.datamodule, verbose=False)

    def fit(self, **kwargs: Any) -> None:
        """`trainer.fit`, from the chosen checkpoint; it may hold plain types and tensors, and no code."""
        state = str(self.checkpoint.state) if self.checkpoint else None
        try:
            self.trainer.fit(**kwargs, ckpt_path=state, weights_only=True)
        except UnpicklingError as error:
            raise CheckpointError(f"{state} holds more than tensors and plain types; it is not loaded.") from error

    def validate(self, **kwargs: Any) -> None:
        """`trainer.validate`; a checkpoint may hold plain types and tensors, and no code."""
        self.trainer.validate(**kwargs, weights_only=True)

    def test(self, model: L.LightningModule, ckpt_path: str | None = None, **options: Any) -> None:
        """`trainer.test` on one empty batch: the benchmarks bring their own problems.

        Raises:
            RecipeError: if the recipe names none.
        """
        from simct_pl.evaluation.runner import BenchmarkProvider  # with `datasets`, which no other stage needs

        callbacks = self.trainer.callbacks  # type: ignore[attr-defined]
        if not any(isinstance(callback, BenchmarkProvider) for callback in callbacks):
            raise RecipeError("The recipe names no benchmarks; add the overlay --recipe benchmarks, or one like it.")
        one: DataLoader[int] = DataLoader([0])  # type: ignore[arg-type]
        self.trainer.test(model, one, ckpt_path=ckpt_path, verbose=False, weights_only=True)
        for logger in self._run_loggers():
            logger.end()

    def after_fit(self) -> None:
        if isinstance(self.model, DistillModule):
            self._report(self.model)
        for logger in self._run_loggers():
            logger.end()

    def _report(self, module: DistillModule) -> None:
        # The last step was not one for validation, and the summary shows the end.
        if module.history and module.history[-1].step != self.trainer.global_step:
            self.trainer.validate(self.model, datamodule=self.datamodule, verbose=False)
        if self.trainer.is_global_zero:
            print_summary(module, self.trainer)

    @override
    def after_instantiate_classes(self) -> None:
        self._dump_config()
        info = RunInfo.collect(self.run_name, self._recipe())
        for part in (*self.trainer.callbacks, *self.trainer.loggers):  # type: ignore[attr-defined]
            if isinstance(part, RunInfoReader):
                part.run_info = info

    @property
    def _run_folder(self) -> str:
        """Where a run goes whose recipe does not say."""
        return f"runs/{self.run_name}"

    def _recipe(self) -> str:
        return yaml.safe_dump(self.config_dump, sort_keys=False, allow_unicode=True)

    def _run_loggers(self) -> list[RunLogger]:
        return [logger for logger in self.trainer.loggers if isinstance(logger, RunLogger)]

    def _checkpoint_provider(self) -> CheckpointProvider | None:
        callbacks = self.trainer.callbacks  # type: ignore[attr-defined]
        return next((callback for callback in callbacks if isinstance(callback, CheckpointProvider)), None)
