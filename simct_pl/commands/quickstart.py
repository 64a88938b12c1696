"""`python -m simct_pl quickstart`: the embedded example, from nothing to a student that has visibly learned."""

from __future__ import annotations

import argparse

from simct_pl.commands.trainer import run


def main(argv: list[str]) -> int:
    """Run the quickstart recipe; further arguments overlay it as in `fit`."""
    parser = argparse.ArgumentParser(
        prog="python -m simct_pl quickstart",
        description="Distil a digit-splitting teacher into a student with merged-number tokens (about two minutes "
        "on two cores). Further options go to `fit`, for example --trainer.max_steps 20.",
    )
    _, overlays = parser.parse_known_args(argv)
    return run(["fit", "--recipe", "quickstart", *overlays])
