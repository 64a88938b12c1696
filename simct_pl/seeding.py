"""One seed for a run: what draws something takes the recipe's `seed_everything` unless it is given its own."""

from __future__ import annotations

import os


def run_seed(own: int | None) -> int:
    """The component's own seed, or the one `seed_everything` set for the process; 0 outside of any run."""
    return int(os.environ.get("PL_GLOBAL_SEED", "0")) if own is None else own
