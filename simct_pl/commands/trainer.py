"""`fit`, `validate`, `test`: the options that are about this call are taken out, the rest is a recipe for Lightning.

In: a command line. Out: an exit code. `fit --resume [CHECKPOINT]` goes on with a run, `fit --dry_run [GPU]` only says
what it would do. Lightning takes seconds to import, so what can be refused without it is refused first.
"""

from __future__ import annotations

from simct_pl.config.recipes import check_recipes
from simct_pl.errors import RecipeError


def run(argv: list[str]) -> int:
    """Run a trainer command, e.g. ["fit", "--recipe", "quickstart"].

    Raises:
        SimctError: for anything in the recipe or the data that the user can put right.
    """
    arguments = list(argv)
    resume, gpu = _take_option(arguments, "--resume"), _take_option(arguments, "--dry_run")
    check_recipes(arguments)
    from simct_pl.checkpointing.resume import AUTO, NEVER
    from simct_pl.config.lightning_cli import SimctCLI, open_recipes

    if gpu is None:
        open_recipes(arguments, SimctCLI, resume=NEVER if resume is None else resume or AUTO)
        return 0
    from simct_pl.commands.dry_run import dry_run
    from simct_pl.planning.run import PlanningCLI

    return dry_run(open_recipes(arguments, PlanningCLI), gpu or None)


def _take_option(arguments: list[str], name: str) -> str | None:
    """Take `name [VALUE]` out of the arguments of fit, in place: it is about this call, and no part of a recipe.

    Returns the value, "" for an option without one, None if it is not there.

    Raises:
        RecipeError: with another command than fit.
    """
    for i, argument in enumerate(arguments):
        flag, equals, value = argument.partition("=")
        if flag != name:
            continue
        if not equals and i + 1 < len(arguments) and not arguments[i + 1].startswith("-"):
            value = arguments.pop(i + 1)
        del arguments[i]
        if arguments[0] != "fit":
            raise RecipeError(f"{name} goes with fit, not with {arguments[0]}.")
        return value
    return None
