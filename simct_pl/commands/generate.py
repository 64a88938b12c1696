"""`python -m simct_pl generate`: a model's responses to prompts, by recipe or by options."""

from __future__ import annotations

from simct_pl.commands.by_recipe import run_function


def main(argv: list[str]) -> int:
    """Run the command.

    Raises:
        SimctError: for anything that the user can put right.
    """
    from simct_pl.warmup.generate import generate

    report = run_function("generate", "Let a model answer prompts; run it again to go on.", generate, argv)
    shown = {key: value for key, value in report.items() if key != "given_up"}
    print("\n".join(f"{key}: {value}" for key, value in shown.items()))
    return 0
