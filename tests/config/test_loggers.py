"""`--trainer.logger`: Lightning's own by name, several, none; and what every run logs if nobody says otherwise."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import pytest
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.logger import Logger, rank_zero_experiment

from simct_pl.commands.main import main
from simct_pl.commands.trainer import run
from simct_pl.config import lightning_cli
from simct_pl.tracking.logger import RunLogger
from simct_pl.tracking.run_info import RunInfoReader


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[lightning_cli.SimctCLI]:
    """The command lines whose components were made, and then not run."""
    clis: list[lightning_cli.SimctCLI] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(lightning_cli.SimctCLI, "_run_subcommand", lambda self, subcommand: clis.append(self))
    return clis


class Needy(Logger):
    """Needs a package that nobody has."""

    def __init__(self, save_dir: str) -> None:
        raise ModuleNotFoundError("Neither `needed` nor `neededX` is available.\nTry `pip install`ing either.")

    name = version = None

    @rank_zero_experiment
    def experiment(self) -> None: ...

    def log_metrics(self, *_: object, **__: object) -> None: ...

    def log_hyperparams(self, *_: object, **__: object) -> None: ...


@pytest.mark.parametrize(
    ("value", "kinds"),
    [
        ("CSVLogger", [CSVLogger]),
        ("[CSVLogger]", [CSVLogger]),
        ("[CSVLogger, {class_path: CSVLogger, init_args: {save_dir: mine}}]", [CSVLogger, CSVLogger]),
        ("false", []),
        ("true", [RunLogger]),
        ("null", [RunLogger]),
    ],
)
def test_loggers(made: list[lightning_cli.SimctCLI], value: str, kinds: list[type[Logger]]) -> None:
    assert run(["fit", "--recipe", "quickstart", f"--trainer.logger={value}"]) == 0
    loggers = made[0].trainer.loggers
    assert [type(logger) for logger in loggers] == kinds
    folders = [logger.save_dir for logger in loggers if isinstance(logger, CSVLogger)]
    assert folders == ["runs/quickstart", "mine"][: len(folders)]


def test_a_loggers_folder_follows_the_runs(made: list[lightning_cli.SimctCLI]) -> None:
    run(["fit", "--recipe", "quickstart", "--trainer.logger=CSVLogger", "--trainer.default_root_dir=there"])
    assert made[0].trainer.loggers[0].save_dir == "there"


def test_every_step_is_logged_unless_the_recipe_says_otherwise(made: list[lightning_cli.SimctCLI]) -> None:
    Path("own.yaml").write_text("trainer: {accelerator: cpu}")
    boring = "lightning.pytorch.demos.boring_classes.Boring"
    model = [f"--model={boring}Model", f"--data={boring}DataModule"]
    run(["fit", "--recipe", "own.yaml", *model])
    run(["fit", "--recipe", "own.yaml", *model, "--trainer.log_every_n_steps=7"])
    assert [cli.trainer.log_every_n_steps for cli in made] == [1, 7]  # type: ignore[attr-defined]


def test_a_package_that_is_missing_is_named_in_one_line(
    made: list[lightning_cli.SimctCLI], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", "--recipe", "quickstart", f"--trainer.logger={Needy.__module__}.Needy"]) == 2
    (message,) = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("Seed")]
    assert message.startswith("MissingPackageError: ")
    assert "Neither `needed` nor `neededX` is available." in message


def test_all_that_ask_are_told_what_runs(made: list[lightning_cli.SimctCLI]) -> None:
    run(["fit", "--recipe", "quickstart", "--recipe", "checkpoints"])
    trainer: L.Trainer = made[0].trainer
    told = [part for part in (*trainer.callbacks, *trainer.loggers) if isinstance(part, RunInfoReader)]  # type: ignore[attr-defined]
    assert {type(part).__name__ for part in told} == {"Checkpoint", "HFExport", "RecipeLog", "RunLogger"}
    assert len({id(part.run_info) for part in told}) == 1
    assert told[0].run_info is not None
    assert told[0].run_info.name == "quickstart+checkpoints"
    assert "max_steps: 400" in told[0].recipe
