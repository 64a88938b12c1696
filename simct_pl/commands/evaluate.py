"""`python -m simct_pl evaluate`: a model folder scored on benchmarks, by options or by a recipe of them."""

from __future__ import annotations

from simct_pl.commands.by_recipe import run_function


def main(argv: list[str]) -> int:
    """Run the command.

    Raises:
        SimctError: for anything that the user can put right.
    """
    # The benchmarks' modules are imported so that their classes are known by their short names.
    from simct_pl.evaluation.benchmarks import (
        graded_prompts,  # noqa: F401
        gsm8k,  # noqa: F401
        humaneval,  # noqa: F401
        livecodebench,  # noqa: F401
        math500,  # noqa: F401
        mbpp,  # noqa: F401
    )
    from simct_pl.evaluation.evaluate import evaluate
    from simct_pl.tasks import benchmark  # noqa: F401

    run_function("evaluate", "Score a model.", evaluate, argv)
    return 0
