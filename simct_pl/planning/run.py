"""A recipe's parts, checked, and their plan: where `fit --dry_run` and `preflight` start from.

In: a recipe, read by PlanningCLI. Out: PlannedRun, or an error that says what would stop the run.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import lightning as L
from typing_extensions import override

from simct_pl.config.lightning_cli import SimctCLI, own_errors
from simct_pl.errors import RecipeError, RolloutError
from simct_pl.planning.deployment import Deployment
from simct_pl.planning.plan import Plan, make_plan
from simct_pl.planning.samples import Lengths, Sample, measure_lengths, read_samples
from simct_pl.progress import progress
from simct_pl.rehearsal.training import Started
from simct_pl.rollout.engine import RolloutProvider
from simct_pl.training.checks import NO_ROLLOUTS
from simct_pl.training.module import DistillModule

NUM_PROMPTS = 64
NUM_PHASES = 8  # models, five of the step, alignment, engine


class PlanningCLI(SimctCLI):
    """Reads recipes as `fit` does and makes their components, but no trainer: eight GPUs need not be here."""

    @override
    def instantiate_classes(self) -> None:
        with own_errors():
            self.config_init = self.parser.instantiate_classes(self.config)
        self.model = self._get(self.config_init, "model")
        self.datamodule = self._get(self.config_init, "data")
        self.settings: dict[str, Any] = self._get(self.config_init, "trainer")

    @override
    def after_instantiate_classes(self) -> None:
        """No trainer, so nothing to tell it."""

    @override
    def _run_subcommand(self, subcommand: str) -> None:
        """The caller decides what is done with the components."""


@dataclass(frozen=True)
class PlannedRun:
    """A recipe's parts, checked, and its plan."""

    module: DistillModule
    datamodule: L.LightningDataModule
    rollouts: RolloutProvider
    samples: list[Sample]
    lengths: Lengths
    plan: Plan


@contextmanager
def phases_shown() -> Iterator[Started]:
    """A bar that says which phase of the step is being rehearsed; without weights, but at full size."""
    with progress("rehearsing a step", NUM_PHASES) as bar:

        def started(phase: str) -> None:
            bar.describe(f"rehearsing a step: {phase.replace('_', ' ')}")
            bar.advance()

        yield started


def plan_run(cli: PlanningCLI, gpu: str | None, num_prompts: int = NUM_PROMPTS, domain: str = "domain") -> PlannedRun:
    """Check what can be checked without weights, and plan, with a progress bar.

    gpu: a name in step.GPU_MEMORY; None takes the one here, or an H100.

    Raises:
        SimctError: of the kind that fits.
    """
    module, datamodule = cli.model, cli.datamodule
    if not isinstance(module, DistillModule):
        raise RecipeError(
            f"The recipe's model is {type(module).__name__}; expected a DistillModule: a pair to look at."
        )
    deployment = Deployment.of(cli.settings, gpu)
    callbacks = cli.settings["callbacks"] or []
    callbacks = callbacks if isinstance(callbacks, list) else [callbacks]  # a trainer takes a single one, too
    providers = [one for one in callbacks if isinstance(one, RolloutProvider)]
    if not providers:
        raise RolloutError(NO_ROLLOUTS)
    module.setup("fit")
    datamodule.setup("fit")
    samples = read_samples(datamodule, num_prompts, domain)
    lengths = measure_lengths([lesson.pair for lesson in module.lessons.values()], samples)
    with phases_shown() as started:
        plan = make_plan(module, datamodule, providers[0], deployment, lengths, started)
    return PlannedRun(module, datamodule, providers[0], samples, lengths, plan)
