"""`python -m simct_pl evaluate`: a model folder scored on benchmarks, by options or by a recipe of them."""

from __future__ import annotations


def main(argv: list[str]) -> int:
    """Run the command.

    Raises:
        SimctError: for anything that the user can put right.
    """
    from jsonargparse import ActionConfigFile

    # The benchmarks' modules are imported so that their classes are known by their short names.
    from simct_pl.evaluation import graded_prompts, gsm8k, humaneval, livecodebench, math500, mbpp  # noqa: F401
    from simct_pl.evaluation.evaluate import evaluate
    from simct_pl.lightning_cli import quiet_libraries
    from simct_pl.recipe_parser import RecipeParser
    from simct_pl.recipes import check_yaml, resolve_recipes
    from simct_pl.tasks import benchmark  # noqa: F401

    arguments = list(argv)
    for recipe in resolve_recipes(arguments):
        check_yaml(recipe)
    quiet_libraries()
    parser = RecipeParser(
        prog="python -m simct_pl evaluate", description="Score a model.", parser_mode="omegaconf+", allow_abbrev=False
    )
    parser.add_argument("-c", "--config", "--recipe", action=ActionConfigFile, help="YAML with the options below.")
    parser.add_function_arguments(evaluate)
    options = parser.instantiate_classes(parser.parse_args(arguments))
    evaluate(**{name: value for name, value in options.items() if name != "config"})
    return 0
