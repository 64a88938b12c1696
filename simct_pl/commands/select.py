"""`python -m simct_pl select`: the responses to learn from, verified and filtered, by recipe."""

from __future__ import annotations

from simct_pl.commands.by_recipe import run_function


def main(argv: list[str]) -> int:
    """Run the command.

    Raises:
        SimctError: for anything that the user can put right.
    """
    from simct_pl.warmup.select import select

    run_function("select", "Keep the responses that a student should learn from.", select, argv)
    return 0
