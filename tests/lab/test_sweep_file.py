"""Sweep files: which cells they mean, when a cell is another one, and what is refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import yaml

from simct_pl.commands.sweep import is_finished
from simct_pl.config.recipes import recipe_folder
from simct_pl.errors import MissingFileError, RecipeError
from simct_pl.lab.sweep_file import Cell, SweepFile, nested

CONTENT = {
    "name": "small",
    "recipes": ["quickstart"],
    "values": {"trainer.max_steps": 3},
    "methods": {"marginal": None, "paper": {"recipes": ["ablations/simct_paper"], "values": {"trainer.max_steps": 4}}},
    "grid": {"data.init_args.limit": [20, 50]},
    "seeds": [0, 1],
}


def load(folder: Path, **changes: object) -> SweepFile:
    path = folder / "sweep.yaml"
    path.write_text(
        yaml.safe_dump({key: value for key, value in {**CONTENT, **changes}.items() if value != "left out"})
    )
    return SweepFile.load(path)


def test_a_cell_for_every_method_value_and_seed_seed_by_seed(tmp_path: Path) -> None:
    cells = load(tmp_path).cells(tmp_path / "out")
    columns = [f"{method}, limit={limit}" for method in ("marginal", "paper") for limit in (20, 50)]
    assert [cell.name for cell in cells] == [f"{column}, seed {seed}" for seed in (0, 1) for column in columns]
    assert len({cell.folder for cell in cells}) == len({cell.key for cell in cells}) == 8


def test_a_cell_is_told_values_seed_and_folder_the_nearer_value_wins(tmp_path: Path) -> None:
    marginal, _, paper, _ = load(tmp_path).cells(tmp_path / "out")[:4]
    assert [path.stem for path in paper.recipes] == ["quickstart", "simct_paper"]
    told = yaml.safe_load(paper.overlay)
    assert told["seed_everything"] == 0
    assert told["data"] == {"init_args": {"limit": 20}}
    assert told["trainer"]["max_steps"] == 4
    assert told["trainer"]["default_root_dir"] == str(paper.folder)
    assert yaml.safe_load(marginal.overlay)["trainer"]["max_steps"] == 3


def test_a_cell_with_another_value_or_another_recipe_text_is_another_one(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("{}")
    methods = {"one": {"recipes": [str(own)]}}
    keys = {load(tmp_path, methods=methods, grid={}).cells(tmp_path)[0].key}
    keys.add(load(tmp_path, methods=methods, grid={}, values={"trainer.max_steps": 9}).cells(tmp_path)[0].key)
    own.write_text("{model: {}}")
    keys.add(load(tmp_path, methods=methods, grid={}).cells(tmp_path)[0].key)
    assert len(keys) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "left out"}, "lacks name"),
        ({"name": "a/b"}, "name is 'a/b'"),
        ({"sedes": [1]}, "Did you mean 'seeds'"),
        ({"seeds": []}, "at least one whole number"),
        ({"seeds": ["x"]}, "at least one whole number"),
        ({"seeds": [1, 2, 1]}, "expected each once"),
        ({"seeds": 3}, "seeds is 3; expected a list"),
        ({"methods": {}}, "methods is empty"),
        ({"methods": {"a": {"recipe": "x"}}}, "Did you mean 'recipes'"),
        ({"methods": {"a": "simct_paper"}}, r"methods\.a is 'simct_paper'; expected a mapping"),
        ({"grid": {"data.init_args.limit": 20}}, "expected a list of values"),
    ],
)
def test_what_is_no_sweep_is_refused_with_the_key(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load(tmp_path, **changes)


def test_a_recipe_that_is_not_there_is_named_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="simct_papr"):
        load(tmp_path, methods={"a": {"recipes": ["ablations/simct_papr"]}})


def test_dotted_keys_become_a_tree_unless_they_contradict_each_other() -> None:
    assert nested({"a.b": 1, "a.c": 2, "d": 3}) == {"a": {"b": 1, "c": 2}, "d": 3}
    for clash in ({"a": 1, "a.b": 2}, {"a.b": 2, "a": 1}):
        with pytest.raises(RecipeError, match="set one of the two"):
            nested(clash)


def test_every_shipped_sweep_loads() -> None:
    sweeps = [path for path in recipe_folder().rglob("*.yaml") if "\nmethods:" in path.read_text(encoding="utf-8")]
    assert len(sweeps) >= 3
    for path in sweeps:
        assert SweepFile.load(path).cells(Path("runs"))


@pytest.mark.parametrize("content", ["", "{}", "[]", "null", '{"key": "another"}'])
def test_a_result_that_says_nothing_of_the_cell_is_run_again(tmp_path: Path, content: str) -> None:
    cell = cast("Cell", SimpleNamespace(folder=tmp_path, key="k"))
    (tmp_path / "result.json").write_text(content)
    assert not is_finished(cell)
    (tmp_path / "result.json").write_text('{"key": "k"}')
    assert is_finished(cell)
