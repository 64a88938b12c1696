"""Recipes by path or by name: found, their flags in a command line resolved, their YAML checked before it is used."""

from __future__ import annotations

import difflib
from pathlib import Path

import yaml

from simct_pl.errors import MissingFileError, RecipeError

PACKAGE = Path(__file__).resolve().parents[1]
RECIPE_FLAGS = ("--recipe", "--config", "-c")


def recipe_folder() -> Path:
    """Where the shipped recipes are: in the wheel, or beside the package in a checkout."""
    bundled = PACKAGE / "_recipes"
    return bundled if bundled.is_dir() else PACKAGE.parent / "recipes"


def find_recipe(name: str) -> Path:
    """A recipe by path, or by the name of a shipped one ("quickstart", "ablations/exact").

    Raises:
        MissingFileError: naming the nearest shipped recipes, or all.
    """
    folder = recipe_folder()
    for candidate in (Path(name), folder / name, folder / f"{name}.yaml"):
        if candidate.is_file():
            return candidate
    shipped = sorted(str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.yaml"))
    near = difflib.get_close_matches(Path(name).with_suffix("").as_posix(), shipped, n=3)
    hint = f"Did you mean {' or '.join(map(repr, near))}?" if near else f"Shipped are {', '.join(shipped)}."
    raise MissingFileError(f"Recipe {name!r} is neither a file nor a shipped recipe. {hint}")


def resolve_recipes(arguments: list[str]) -> list[str]:
    """Replace the names of shipped recipes by their paths, in place; returns the paths.

    Raises:
        MissingFileError: for a name or a path that leads nowhere. RecipeError: for a flag without a name.
    """
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
        else:
            raise RecipeError(f"{flag} is the last word of the command; expected a recipe after it, by name or path.")
    return recipes


def check_recipes(arguments: list[str]) -> None:
    """Find the recipes that a command line names, and read them as YAML; needs no heavy import.

    Raises:
        MissingFileError, RecipeError: naming the recipe.
    """
    for recipe in resolve_recipes(list(arguments)):
        check_yaml(recipe)


def check_yaml(recipe: str) -> None:
    """Read a recipe as YAML.

    Raises:
        RecipeError: for a file that is no YAML, or holds no keys.
    """
    try:
        content = yaml.safe_load(Path(recipe).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"Recipe {recipe!r} is not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise RecipeError(f"Recipe {recipe!r} holds {content!r:.40}; expected keys such as model, data and trainer.")
