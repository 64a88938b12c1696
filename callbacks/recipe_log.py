"""Writes down what ran: the resolved recipe, package versions and the commit, to the run's folder and to the
tracker.
"""

from __future__ import annotations

from pathlib import Path

import lightning as L
from typing_extensions import override

from callbacks.distilled import distilled
from simct_pl.tracking.artifacts import log_text
from simct_pl.tracking.run_info import RunInfoReader


class RecipeLog(L.Callback, RunInfoReader):
    """Saves `recipe.yaml` under the trainer's root directory; logs versions, commit and the objective's variant to
    every logger, and the recipe where texts can go.
    """

    only_reports = True

    @override
    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        module = distilled(self, pl_module)
        info = self.run_info
        if info is None or not trainer.is_global_zero:
            return
        folder = Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "recipe.yaml").write_text(info.recipe, encoding="utf-8")
        parameters = {f"version/{package}": number for package, number in info.versions.items()}
        parameters["commit"] = info.commit or "unknown"
        parameters |= {f"variant/{name}": str(value) for name, value in module.objective.describe().items()}
        parameters["variant/aligner"] = type(module.aligner).__name__
        for logger in trainer.loggers:
            logger.log_hyperparams(parameters)
        log_text(trainer.loggers, "recipe.yaml", info.recipe)
