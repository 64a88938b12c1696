"""`fit --dry_run`: everything that a recipe names is looked up and checked, and the plan printed. No weights load.

In: the recipe's components, made without a trainer. Out: the plan's sections, or an error that says what would stop the
run or that one rank's memory is too small.
"""

from __future__ import annotations

from rich.console import Console

from simct_pl.errors import PromptDataError, RecipeError
from simct_pl.models.loading import no_room
from simct_pl.planning.deployment import Deployment
from simct_pl.planning.plan import Plan
from simct_pl.planning.run import NUM_PROMPTS, PlannedRun, PlanningCLI, phases_shown, plan_run
from simct_pl.planning.section import print_sections
from simct_pl.planning.supervised import plan_supervised, read_lengths, supervised_sections
from simct_pl.planning.words import GB, plan_sections
from simct_pl.warmup.sft import SFTModule


def dry_run(cli: PlanningCLI, gpu: str | None) -> int:
    """Print the plan.

    Raises:
        SimctError: for what would stop the run, after the plan where there is one.
    """
    console = Console()
    if isinstance(cli.model, SFTModule):
        lengths = read_lengths(cli.model, cli.datamodule, NUM_PROMPTS)
        with phases_shown() as started:
            plan = plan_supervised(cli.model, cli.datamodule, Deployment.of(cli.settings, gpu), lengths, started)
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
    there_is = plan.deployment.memory
    if plan.peak > there_is:
        raise RecipeError(
            f"One rank would need {plan.peak / GB:.1f} GB and has {there_is / GB:.1f} GB (rehearsed). Lay recipe fsdp2 "
            "over it, share the teacher (sharding.shard_teacher), lower micro_batch_tokens, or take more GPUs."
        )
