"""`python -m simct_pl preflight --recipe R`: one page about a recipe's models, data and memory, and a verdict.

In: recipes and `--key value` as for `fit`. Out: the page on the terminal, as HTML and as JSON; exit code 1 for
"stop". Weights are loaded only to score both models on held-out responses.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from simct_pl.commands.output import user_path
from simct_pl.errors import RecipeError

if TYPE_CHECKING:
    from simct_pl.planning.run import PlannedRun
    from simct_pl.preflight.score import ScoreReport
    from simct_pl.training.lesson import Lesson

STOPPED = 1
NO_RESPONSES = "the data have no reference responses (response_field)."
NOT_ASKED = "--score false."


def main(argv: list[str]) -> int:
    """Run the command; 0 for "go" and "go with care", 1 for "stop".

    Raises:
        SimctError: for a recipe, a model or data that cannot be read.
    """
    own, rest = _parser().parse_known_args(argv)
    if own.num_prompts < 1 or own.num_scored < 1:
        raise RecipeError(
            f"--num_prompts {own.num_prompts} --num_scored {own.num_scored}; expected at least 1 of each."
        )
    from rich.console import Console
    from rich.text import Text

    from simct_pl.config.lightning_cli import open_recipes
    from simct_pl.files.outputs import check_file
    from simct_pl.planning.run import PlanningCLI, plan_run
    from simct_pl.planning.section import print_sections
    from simct_pl.preflight.page import as_json, html
    from simct_pl.preflight.pair_report import Looked
    from simct_pl.preflight.report import build_preflight
    from simct_pl.preflight.taught import what_is_taught

    console = Console()
    cli = open_recipes(["fit", *rest], PlanningCLI)
    page = check_file(own.output or Path("runs") / cli.run_name / "preflight.html")
    # No spinner: an objective that reads whole vocabularies shows a bar of its own.
    console.print(Text("Reading tokenizers, configurations and prompts, and sizing both models.", style="dim"))
    run = plan_run(cli, own.hardware, own.num_prompts, own.domain_field)
    looked = {}
    for name, lesson in run.module.lessons.items():
        taught = None
        if own.agreement == "true":
            on_policy, aligner = run.rollouts.on_policy, run.module.aligner
            taught = what_is_taught(lesson.pair, lesson.objective, aligner, on_policy=on_policy)
        looked[name] = Looked(taught, *_score(run, lesson, own.score, own.num_scored))
    preflight = build_preflight(cli.run_name, run, looked)
    print_sections(console, preflight.sections)
    console.print(Text(f"Verdict: {preflight.verdict.words}", style="bold"))
    for reason in preflight.reasons:
        console.print(Text(f"  {reason}"))
    figures = page.with_suffix(".json")
    page.write_text(html(preflight), encoding="utf-8")
    figures.write_text(as_json(preflight), encoding="utf-8")
    console.print(Text(f"{page}\n{figures}"), soft_wrap=True)
    return STOPPED if preflight.verdict.words == "stop" else 0


def _score(run: PlannedRun, lesson: Lesson, wanted: str, num_scored: int) -> tuple[ScoreReport | None, str]:
    """The scores, or why there are none."""
    from simct_pl.preflight.score import score, why_not_by_itself

    if wanted == "false":
        return None, NOT_ASKED
    if lesson.server is not None:
        return None, "the teacher's weights are on a server"
    if wanted == "auto" and (why_not := why_not_by_itself(run.module, lesson)) is not None:
        return None, f"{why_not}; --score true loads both models all the same."
    # Of several teachers, what it grades.
    graded = [sample for sample in run.samples if run.module.lesson_of(sample.prompt) in (None, lesson)]
    with_response = [sample for sample in graded if sample.prompt.response][:num_scored]
    return score(run.module, lesson, with_response), NO_RESPONSES


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m simct_pl preflight",
        description="Look at a recipe before GPU time. Takes --recipe and --key value as `fit` does.",
        allow_abbrev=False,
    )
    parser.add_argument("--num_prompts", type=int, default=256, help="first prompts to look at (default: %(default)s)")
    parser.add_argument("--domain_field", default="domain", help="field of the prompt file (default: %(default)s)")
    parser.add_argument(
        "--score",
        choices=("auto", "true", "false"),
        default="auto",
        help="load both models and compare them on reference responses; auto: if both are here and small enough",
    )
    parser.add_argument(
        "--agreement",
        choices=("true", "false"),
        default="true",
        help="what the objective teaches two models that agree, on small languages, in seconds (default: %(default)s)",
    )
    parser.add_argument("--num_scored", type=int, default=64, help="responses to score (default: %(default)s)")
    parser.add_argument("--hardware", help="h100, h200 or a100: plan for that GPU (default: the one here, or h100)")
    page = "HTML page, with a .json beside it (default: runs/NAME/preflight.html)"
    parser.add_argument("--output", type=user_path, help=page)
    return parser
