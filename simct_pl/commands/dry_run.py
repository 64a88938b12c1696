"""`fit --dry_run`: everything that a recipe names is looked up and checked, and the plan printed. No weights load.

In: the recipe's components, made without a trainer. Out: the plan's sections, or an error that says what would stop the
run or that one rank's memory is too small.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import lightning as L
from rich.console import Console
from typing_extensions import override

from simct_pl.config.lightning_cli import SimctCLI, own_errors
from simct_pl.errors import PromptDataError, RecipeError, RolloutError
from simct_pl.models.loading import no_room
from simct_pl.planning.layout import Layout
from simct_pl.planning.plan import Plan, make_plan
from simct_pl.planning.samples import Lengths, Sample, measure_lengths, read_samples
from simct_pl.planning.section import print_sections
from simct_pl.planning.supervised import plan_supervised, read_lengths, supervised_sections
from simct_pl.planning.words import GB, plan_sections
from simct_pl.rollout.engine import RolloutProvider
from simct_pl.training.checks import NO_ROLLOUTS
from simct_pl.training.module import DistillModule
from simct_pl.warmup.sft import SFTModule

NUM_PROMPTS = 64


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


def plan_run(cli: PlanningCLI, gpu: str | None, num_prompts: int = NUM_PROMPTS, domain: str = "domain") -> PlannedRun:
    """Check what can be checked without weights, and plan.

    gpu: a name in planning.cost_inputs.GPUS; None takes the one here, or an H100.

    Raises:
        SimctError: of the kind that fits.
    """
    module, datamodule = cli.model, cli.datamodule
    if not isinstance(module, DistillModule):
        raise RecipeError(
            f"The recipe's model is {type(module).__name__}; expected a DistillModule: a pair to look at."
        )
    layout = Layout.of(cli.settings, gpu)
    callbacks = cli.settings["callbacks"] or []
    callbacks = callbacks if isinstance(callbacks, list) else [callbacks]  # a trainer takes a single one, too
    providers = [one for one in callbacks if isinstance(one, RolloutProvider)]
    if not providers:
        raise RolloutError(NO_ROLLOUTS)
    module.setup("fit")
    datamodule.setup("fit")
    samples = read_samples(datamodule, num_prompts, domain)
    lengths = measure_lengths(module.pair, samples)
    plan = make_plan(module, datamodule, providers[0], layout, lengths)
    return PlannedRun(module, datamodule, providers[0], samples, lengths, plan)


def dry_run(cli: PlanningCLI, gpu: str | None) -> int:
    """Print the plan.

    Raises:
        SimctError: for what would stop the run, after the plan where there is one.
    """
    console = Console()
    with console.status("reading tokenizers, configurations and prompts"):
        if isinstance(cli.model, SFTModule):
            lengths = read_lengths(cli.model, cli.datamodule, NUM_PROMPTS)
            plan = plan_supervised(cli.model, cli.datamodule, Layout.of(cli.settings, gpu), lengths)
            sections, run = supervised_sections(cli.model, plan, lengths), None
        else:
            run = plan_run(cli, gpu)
            plan, sections = run.plan, plan_sections(run.module, run.rollouts, run.plan, run.lengths)
    print_sections(console, sections)
    if run is not None:
        check_context(run)
    check_memory(plan)
    console.print("Nothing was loaded and nothing was written. Without --dry_run this command trains.")
    return 0


def check_context(run: PlannedRun) -> None:
    """Prompt and response must fit into the student's context, as RolloutCallback asks.

    Raises:
        PromptDataError: naming the three numbers.
    """
    max_tokens = run.rollouts.sampling.max_tokens
    if too_long := no_room("The longest prompt", run.lengths.student_prompt, max_tokens, run.module.student_context):
        raise PromptDataError(too_long)


def check_memory(plan: Plan) -> None:
    """The peak must fit.

    Raises:
        RecipeError: naming both sizes, and what brings the first one down.
    """
    if plan.peak > plan.layout.memory:
        raise RecipeError(
            f"One rank would need {plan.peak / GB:.1f} GB and has {plan.layout.memory / GB:.1f} GB (predicted). Lay "
            "recipe fsdp2 over it, share the teacher (sharding.shard_teacher), lower micro_batch_tokens, or take more "
            "GPUs."
        )
