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
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from simct_pl.config.recipes import check_yaml, find_recipe
from simct_pl.errors import RecipeError, require_choice

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
        found = cls.parse(str(path), yaml.safe_load(path.read_text(encoding="utf-8")))
        for recipe in [*found.recipes, *(r for method in found.methods.values() for r in method.recipes)]:
            find_recipe(recipe)
        return found

    @classmethod
    def parse(cls, place: str, content: Any) -> SweepFile:
        """Check a file's content, but not whether its recipes are there; place: what errors call it.

        Raises:
            RecipeError: naming the key or the value.
        """
        content = _typed(place, "content", content, dict)
        _check_keys(place, content, {f.name for f in fields(cls)}, {"name", "recipes", "methods", "seeds"})
        found = cls(
            _named(place, content["name"]),
            tuple(_typed(place, "recipes", content["recipes"], list)),
            {str(name): _method(place, name, value) for name, value in _methods(place, content["methods"]).items()},
            tuple(_typed(place, "seeds", content["seeds"], list)),
            _typed(place, "values", content.get("values") or {}, dict),
            _typed(place, "grid", content.get("grid") or {}, dict),
        )
        if not found.seeds or not all(isinstance(seed, int) for seed in found.seeds):
            raise RecipeError(f"{place}: seeds are {list(found.seeds)}; expected at least one whole number.")
        if len(set(found.seeds)) != len(found.seeds):
            raise RecipeError(f"{place}: seeds are {list(found.seeds)}; expected each once: a seed is a cell's folder.")
        for key, choices in found.grid.items():
            if not isinstance(choices, list) or not choices:
                raise RecipeError(f"{place}: grid.{key} is {choices!r}; expected a list of values.")
        return found

    def columns(self) -> dict[str, tuple[Method, Values]]:
        """Every method with every choice of the grid's values, by the name that its cells bear."""
        choices = [dict(zip(self.grid, chosen, strict=True)) for chosen in itertools.product(*self.grid.values())]
        return {_label(name, chosen): (method, chosen) for name, method in self.methods.items() for chosen in choices}

    def cells(self, folder: Path) -> list[Cell]:
        """Every cell, seed by seed, so that a sweep that is stopped early has all methods at its first seeds."""
        columns = self.columns().items()
        return [self._cell(folder, label, *column, seed) for seed in self.seeds for label, column in columns]

    def _cell(self, folder: Path, label: str, method: Method, chosen: Values, seed: int) -> Cell:
        # A method's label holds spaces and commas when there is a grid; a folder's name does not.
        place = folder / re.sub(r"[^\w.=-]+", "_", label) / f"seed{seed}"
        # What is more special wins: the sweep's, the method's, the grid's. Seed and folder are the cell's own.
        values = {**self.values, **method.values, **chosen, "seed_everything": seed}
        values |= {"trainer.default_root_dir": str(place), "trainer.enable_progress_bar": False}
        recipes = tuple(find_recipe(recipe) for recipe in (*self.recipes, *method.recipes))
        return Cell(label, seed, recipes, place, yaml.safe_dump(nested(values), sort_keys=False))


def _label(name: str, chosen: Values) -> str:
    return ", ".join([name, *(f"{key.rpartition('.')[2]}={value}" for key, value in chosen.items())])


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
            # A value where a mapping must be: another key ended here.
            branch = branch.setdefault(parent, {})
            if not isinstance(branch, dict):
                raise RecipeError(f"{key} is set, and so is a value that it lies within; set one of the two.")
        if last in branch:
            raise RecipeError(f"{key} is set, and so is a value within it; set one of the two.")
        branch[last] = value
    return tree


def _methods(place: str, value: Any) -> dict[str, Any]:
    methods: dict[str, Any] = _typed(place, "methods", value, dict)
    if not methods:
        raise RecipeError(f"{place}: methods is empty; expected at least one.")
    return methods


def _method(place: str, name: str, value: Any) -> Method:
    key = f"methods.{name}"
    content = _typed(place, key, value or {}, dict)
    _check_keys(f"{place}: {key}", content, {"recipes", "values"}, set())
    recipes = _typed(place, f"{key}.recipes", content.get("recipes") or [], list)
    return Method(tuple(recipes), _typed(place, f"{key}.values", content.get("values") or {}, dict))


def _check_keys(place: str, content: dict[str, Any], known: set[str], needed: set[str]) -> None:
    for key in content:
        require_choice(f"A key of {place}", str(key), tuple(sorted(known)))
    if missing := sorted(needed - content.keys()):
        raise RecipeError(f"{place} lacks {', '.join(missing)}.")


def _named(place: str, name: Any) -> str:
    if not isinstance(name, str) or not re.fullmatch(r"[\w.-]+", name):
        raise RecipeError(f"{place}: name is {name!r}; expected letters, digits, '.', '_' and '-': it names a folder.")
    return name


def _typed(place: str, key: str, value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise RecipeError(f"{place}: {key} is {value!r:.80}; expected a {'mapping' if kind is dict else 'list'}.")
    return value
