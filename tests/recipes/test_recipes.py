"""Every recipe: parsed, its components made, its header complete."""

from __future__ import annotations

import re
from inspect import signature
from itertools import takewhile
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import yaml

import simct_pl
from simct_pl.commands.trainer import run
from simct_pl.config import lightning_cli
from simct_pl.config.lightning_cli import SimctCLI
from simct_pl.config.recipes import find_recipe, recipe_folder

# A sweep file (simct_pl.lab.sweep_file) is no recipe of one run; tests/lab has tests of those.
EVERY = sorted(recipe_folder().rglob("*.yaml"))
RUNS = [path for path in EVERY if "methods" not in yaml.safe_load(path.read_text(encoding="utf-8"))]
RECIPES = [path for path in RUNS if "python -m simct_pl fit" in path.read_text(encoding="utf-8")]
# The options of other commands; tests/recipes/test_data_recipes.py has tests of those.
OF_COMMANDS = [path for path in RUNS if path not in RECIPES]


def test_there_are_recipes_to_test() -> None:
    names = {path.stem for path in RECIPES}
    assert all(path.parent.name in ("data", "warmup") for path in OF_COMMANDS)
    assert names >= {
        "quickstart",
        "quickstart_teacher",
        "quickstart_student",
        "same_tokenizer",
        "smollm2_to_mistral",
        "fsdp2",
    }


def header_command(recipe: Path) -> list[str]:
    """The recipes of the command in a recipe's header; an overlay's names what it lies on."""
    match = re.search(r"python -m simct_pl fit((?: --recipe \S+)+)", recipe.read_text(encoding="utf-8"))
    assert match, f"{recipe} does not say how to run it"
    return match.group(1).split()


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_makes_its_components(recipe: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    command = [argument.removeprefix("recipes/") for argument in header_command(recipe)]
    assert Path(command[-1]).stem == recipe.stem
    made: list[SimctCLI] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GSM8K", str(tmp_path))
    monkeypatch.setattr(lightning_cli.SimctCLI, "_run_subcommand", lambda self, subcommand: made.append(self))
    assert run(["fit", *command, "--trainer.logger=false"]) == 0
    (cli,) = made
    assert isinstance(cli.model, L.LightningModule)
    assert isinstance(cli.datamodule, L.LightningDataModule)
    assert cli.run_name.split("+")[-1] == recipe.stem
    assert cli.trainer.max_steps > 0 or cli.trainer.max_epochs > 0


def objective_of(path: Path) -> dict[str, Any]:
    """What a recipe says of its objective; nothing where it names none."""
    found = yaml.safe_load(path.read_text(encoding="utf-8")).get("model", {})
    found = found.get("init_args", {}).get("objective", {}) if isinstance(found, dict) else {}
    return {"class_path": found} if isinstance(found, str) else found


@pytest.mark.parametrize("recipe", [path for path in RUNS if objective_of(path)], ids=lambda path: path.stem)
def test_an_overlay_leaves_no_divergence_to_the_recipe_below(recipe: Path) -> None:
    """Overlays are merged key by key: SimCT as published would become another method on a recipe with another one."""
    objective = objective_of(recipe)
    takes = signature(getattr(simct_pl, objective["class_path"].removeprefix("simct_pl."))).parameters
    assert ("divergence" in objective.get("init_args", {})) == ("divergence" in takes)


@pytest.mark.parametrize("recipe", EVERY, ids=lambda path: path.stem)
def test_every_recipe_names_its_hardware(recipe: Path) -> None:
    header = "\n".join(takewhile(lambda line: line.startswith("#"), recipe.read_text(encoding="utf-8").splitlines()))
    assert "Hardware:" in header


def test_recipes_are_found_by_path_and_by_name(tmp_path: Path) -> None:
    own = tmp_path / "mine.yaml"
    own.write_text("{}")
    assert find_recipe(str(own)) == own
    assert find_recipe("quickstart") == find_recipe("quickstart.yaml") == recipe_folder() / "quickstart.yaml"


def test_a_value_may_begin_with_a_hash(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In a recipe's quotes, and on the command line; without quotes YAML reads a comment."""
    made: list[SimctCLI] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GSM8K", str(tmp_path))
    monkeypatch.setattr(lightning_cli.SimctCLI, "_run_subcommand", lambda self, subcommand: made.append(self))
    command = ["fit", "--recipe", "smollm2_to_mistral", "--trainer.logger=false"]
    assert run([*command, "--data.init_args.train.answer_pattern=#(.)"]) == 0
    data = made[0].datamodule
    assert (data.train.answer_pattern, data.val.answer_pattern) == ("#(.)", r"####\s*(\S+)")
