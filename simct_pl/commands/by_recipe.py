"""Commands whose options are a function's parameters: from a recipe, from the command line, checked by their types."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any


def run_function(name: str, description: str, function: Callable[..., Any], arguments: list[str]) -> Any:
    """Call a function with `--recipe R [--recipe OVERLAY] [--key value]`, whose help is its docstring.

    Raises:
        SimctError: for anything that the user can put right.
    """
    from jsonargparse import ActionConfigFile  # here, so that `python -m simct_pl --help` answers at once

    from simct_pl.config.lightning_cli import own_errors, quiet_libraries
    from simct_pl.config.recipe_parser import PARSER_MODE, RecipeParser, interpolation
    from simct_pl.config.recipes import check_yaml, resolve_recipes

    arguments = list(arguments)
    for recipe in resolve_recipes(arguments):
        check_yaml(recipe)
    quiet_libraries()
    logging.basicConfig(format="%(levelname)s: %(message)s")
    parser = RecipeParser(
        prog=f"python -m simct_pl {name}", description=description, parser_mode=PARSER_MODE, allow_abbrev=False
    )
    parser.add_argument("-c", "--config", "--recipe", action=ActionConfigFile, help="YAML with the options below.")
    parser.add_function_arguments(function)
    with interpolation():
        parsed = parser.parse_args(arguments)
        with own_errors():
            options = parser.instantiate_classes(parsed)
    return function(**{key: value for key, value in options.items() if key != "config"})
