"""`python -m simct_pl data`: a mixture of prompts out of several sources, by recipe."""

from __future__ import annotations

from simct_pl.commands.by_recipe import run_function


def main(argv: list[str]) -> int:
    """Run the command.

    Raises:
        SimctError: for anything that the user can put right.
    """
    from simct_pl.data.build import build_mixture

    run_function("data", "Build a mixture of prompts.", build_mixture, argv)
    return 0
