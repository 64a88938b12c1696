"""What a callback of distillation asks of the module it is used with."""

from __future__ import annotations

import lightning as L

from simct_pl.errors import RecipeError
from simct_pl.training.module import DistillModule


def distilled(callback: L.Callback, pl_module: L.LightningModule) -> DistillModule:
    """The module, as the kind that the callback reads.

    Raises:
        RecipeError: for any other kind.
    """
    if not isinstance(pl_module, DistillModule):
        raise RecipeError(
            f"{type(callback).__name__} needs a DistillModule; the recipe's model is {type(pl_module).__name__}. "
            "Leave the callback out."
        )
    return pl_module
