"""A sweep file: base recipes, methods, seeds and any other values, as a grid of cells. YAML in, Cells out.

name: aligners
recipes: [quickstart, ablations/lab]        # of every cell, in this order
values: {trainer.max_steps: 150}            # dotted recipe values of every cell
methods:
  marginal: {recipes: [ablations/simct_marginal], values: {model.init_args.optimizer.lr: 6.0e-4}}
grid: {data.init_args.limit: [50, 100]}     # optional: every combination
seeds: [0, 1, 2]
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from simct_pl.errors import RecipeError
from simct_pl.losses.divergences import require_choice
from simct_pl.recipes import check_yaml, find_recipe

Values = dict[str, Any]


@dataclass(frozen=True)
class Method:
    """What sets one method apart: overlays, and dotted recipe values."""

    recipes: tuple[str, ...] = ()
    values: Values = field(default_factory=dict)


@dataclass(frozen=True)
class Cell:
    """One fit of a sweep.

    method: its name, with the grid's values where there are any. recipes: paths, in order. overlay: the last recipe, as
    YAML: the values, the seed and the folder.
    """

    method: str
    seed: int
    recipes: tuple[Path, ...]
    folder: Path
    overlay: str

    @property
    def name(self) -> str:
        return f"{self.method}, seed {self.seed}"

    @property
    def key(self) -> str:
        """Of everything that the fit is told: a cell whose recipes have changed is another one."""
        texts = [path.read_text(encoding="utf-8") for path in self.recipes]
        return hashlib.blake2b("\0".join([*texts, self.overlay]).encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class SweepFile:
    """A parsed sweep file; see the module."""

    name: str
    recipes: tuple[str, ...]
    methods: dict[str, Method]
    seeds: tuple[int, ...]
    values: Values = field(default_factory=dict)
    grid: dict[str, list[Any]] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> SweepFile:
        """Read and check a file.

        Raises:
            RecipeError: naming the key or the value. MissingFileError: for a recipe that is not there.
        """
        check_yaml(str(path))
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        _check_keys(str(path), content, {f.name for f in fields(cls)}, {"name", "recipes", "methods", "seeds"})
        found = cls(
            _named(path, content["name"]),
            tuple(_typed(path, "recipes", content["recipes"], list)),
            {str(name): _method(path, name, value) for name, value in _methods(path, content["methods"]).items()},
            tuple(_typed(path, "seeds", content["seeds"], list)),
            _typed(path, "values", content.get("values") or {}, dict),
            _typed(path, "grid", content.get("grid") or {}, dict),
        )
        if not found.seeds or not all(isinstance(seed, int) for seed in found.seeds):
            raise RecipeError(f"{path}: seeds are {list(found.seeds)}; expected at least one whole number.")
        for key, choices in found.grid.items():
            if not isinstance(choices, list) or not choices:
                raise RecipeError(f"{path}: grid.{key} is {choices!r}; expected a list of values.")
        for recipe in [*found.recipes, *(r for method in found.methods.values() for r in method.recipes)]:
            find_recipe(recipe)
        return found

    def cells(self, folder: Path) -> list[Cell]:
        """Every cell, seed by seed, so that a sweep that is stopped early has all methods at its first seeds."""
        columns = [
            (name, method, dict(zip(self.grid, chosen, strict=True)))
            for name, method in self.methods.items()
            for chosen in itertools.product(*self.grid.values())
        ]
        return [self._cell(folder, *column, seed) for seed in self.seeds for column in columns]

    def _cell(self, folder: Path, name: str, method: Method, chosen: Values, seed: int) -> Cell:
        label = ", ".join([name, *(f"{key.rpartition('.')[2]}={value}" for key, value in chosen.items())])
        place = folder / re.sub(r"[^\w.=-]+", "_", label) / f"seed{seed}"
        values = {**self.values, **method.values, **chosen, "seed_everything": seed}
        values |= {"trainer.default_root_dir": str(place), "trainer.enable_progress_bar": False}
        recipes = tuple(find_recipe(recipe) for recipe in (*self.recipes, *method.recipes))
        return Cell(label, seed, recipes, place, yaml.safe_dump(nested(values), sort_keys=False))


def nested(values: Values) -> Values:
    """Dotted keys as nested mappings.

    Raises:
        RecipeError: if one key is the beginning of another.
    """
    tree: Values = {}
    for key, value in values.items():
        *parents, last = key.split(".")
        branch = tree
        for parent in parents:
            branch = branch.setdefault(parent, {})
            if not isinstance(branch, dict):
                raise RecipeError(f"{key} is set, and so is a value that it lies within; set one of the two.")
        if last in branch:
            raise RecipeError(f"{key} is set, and so is a value within it; set one of the two.")
        branch[last] = value
    return tree


def _methods(path: Path, value: Any) -> dict[str, Any]:
    methods: dict[str, Any] = _typed(path, "methods", value, dict)
    if not methods:
        raise RecipeError(f"{path}: methods is empty; expected at least one.")
    return methods


def _method(path: Path, name: str, value: Any) -> Method:
    place = f"{path}: methods.{name}"
    content = _typed(path, f"methods.{name}", value or {}, dict)
    _check_keys(place, content, {"recipes", "values"}, set())
    recipes = _typed(path, f"methods.{name}.recipes", content.get("recipes") or [], list)
    return Method(tuple(recipes), _typed(path, f"methods.{name}.values", content.get("values") or {}, dict))


def _check_keys(place: str, content: dict[str, Any], known: set[str], needed: set[str]) -> None:
    for key in content:
        require_choice(f"A key of {place}", str(key), tuple(sorted(known)))
    if missing := sorted(needed - content.keys()):
        raise RecipeError(f"{place} lacks {', '.join(missing)}.")


def _named(path: Path, name: Any) -> str:
    if not isinstance(name, str) or not re.fullmatch(r"[\w.-]+", name):
        raise RecipeError(f"{path}: name is {name!r}; expected letters, digits, '.', '_' and '-': it names a folder.")
    return name


def _typed(path: Path, key: str, value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise RecipeError(f"{path}: {key} is {value!r:.80}; expected a {'mapping' if kind is dict else 'list'}.")
    return value


def columns_of(cells: list[Cell]) -> Iterator[str]:
    """The methods of some cells, each once, in order."""
    yield from dict.fromkeys(cell.method for cell in cells)
