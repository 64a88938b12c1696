"""One seed for a run: what draws something takes the recipe's `seed_everything` unless it is given its own. And the
states of the generators that are nobody's own (python, numpy, torch), as plain values for a checkpoint.
"""

from __future__ import annotations

import os
import random
from typing import Any

import numpy as np
import torch


def run_seed(own: int | None) -> int:
    """The component's own seed, or the one `seed_everything` set for the process; 0 outside of any run."""
    return int(os.environ.get("PL_GLOBAL_SEED", "0")) if own is None else own


def generator_states() -> dict[str, Any]:
    """States of this process's global generators: numbers, tuples and uint8 tensors, nothing that unpickling runs."""
    name, keys, *rest = np.random.get_state(legacy=True)
    states: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": (name, [int(key) for key in keys], *rest),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state()  # of this rank's device
    return states


def restore_generators(states: dict[str, Any]) -> None:
    """Set this process's global generators to what `generator_states` returned."""
    version, keys, gauss = states["python"]
    random.setstate((version, tuple(keys), gauss))
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(states["torch"])
    if "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"])
