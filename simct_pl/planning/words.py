"""A plan in words: models, step and memory, as sections for a terminal or a page."""

from __future__ import annotations

from simct_pl.models.loading import load_config
from simct_pl.planning.plan import Plan
from simct_pl.planning.samples import Lengths
from simct_pl.planning.section import Section
from simct_pl.planning.step import StepShape
from simct_pl.rehearsal.models import ModelSize
from simct_pl.rollout.engine import RolloutProvider
from simct_pl.training.module import DistillModule

GB = 1e9


def plan_sections(module: DistillModule, rollouts: RolloutProvider, plan: Plan, lengths: Lengths) -> list[Section]:
    """Everything that a dry run prints."""
    return [model_section(module, plan), step_section(module, rollouts, plan, lengths), memory_section(plan)]


def model_section(module: DistillModule, plan: Plan) -> Section:
    """All models by their configurations."""
    trusted = "student" in module.trust_remote_code
    sides = [
        ("student", module.student_path, trusted, module.starts_from, module.student_dtype, module.student_context)
    ]
    sides += [(one.name, one.path, one.trusted, one.path, one.dtype, one.context) for one in module.lessons.values()]
    columns = []
    for name, path, trusted, named, dtype, context in sides:
        config = load_config(name, path, trusted).get_text_config()
        parameters = parameters_of(plan.sizes[name])
        columns.append((named, config.model_type, parameters, dtype, str(context or "not given")))
    names = ("path", "architecture", "parameters", "weights in", "context, tokens")
    return Section("Models", ("", "student", *module.lessons), list(zip(names, *columns, strict=True)))


def step_section(module: DistillModule, rollouts: RolloutProvider, plan: Plan, lengths: Lengths) -> Section:
    """What one optimizer step does."""
    step, sampling, optimizer = plan.step, rollouts.sampling, module.optimizer_config
    response = f"{lengths.response:.0f} on average" if lengths.response else "none in the data"
    steps = plan.deployment.max_steps
    rows = [
        ("layout", plan.deployment.words),
        ("student", "whole on each rank" if step.student == "replicated" else f"shared by {step.shard_size} ranks"),
        ("teacher", _place_words(step)),
        ("rollouts", f"{type(rollouts.engine).__name__}, {_sampling_words(sampling.temperature, sampling.top_p)}"),
        ("responses", f"{step.num_prompts} prompts × {step.num_samples} a step, {step.num_sequences} on each rank"),
        ("tokens", f"prompts up to {step.prompt_tokens}, responses up to {step.response_tokens}"),
        ("reference responses", response),
        ("micro-batches", f"{step.num_micro_batches} of {step.micro_batch} on each rank, at the longest"),
        ("aligner, objective", f"{type(module.aligner).__name__}, {_objective_words(module)}"),
        ("anchor", f"the starting student, weight {module.anchor_weight:g}" if module.anchor_weight > 0 else "none"),
        ("AdamW", f"lr {optimizer.lr:g}, betas {optimizer.betas}, warm-up {optimizer.warmup_ratio:.0%}"),
        ("optimizer steps", str(steps) if steps else "not set (trainer.max_steps)"),
    ]
    return Section("Step", ("", "value"), rows)


def _place_words(step: StepShape) -> str:
    """Where the teacher's weights are."""
    return {
        "replicated": "whole on each rank",
        "sharded": f"shared by {step.shard_size} ranks",
        "server": "on a server, which lists its likeliest tokens",
    }[step.teacher]


def memory_section(plan: Plan) -> Section:
    """Of one rank, item by item."""
    title = f"Memory of one {'GPU' if plan.deployment.gpu else 'process'}, rehearsed"
    rows: list[tuple[str, ...]] = [(item.part.value, _gb(item.bytes), item.when.value) for item in plan.memory]
    rows += [("peak", _gb(plan.peak), ""), ("there is", _gb(plan.deployment.memory), "")]
    turns = "Phases of the step take turns: the largest of them counts."
    note = f"All responses {plan.step.response_tokens:,} tokens long, the step run without values. {turns}"
    missing = "".join(f"\nMissing: {why}" for why in plan.why_not)
    return Section(title, ("", "GB", "while"), rows, note + missing)


def _gb(number: float) -> str:
    return f"{number / GB:.1f}" if number >= GB / 10 else f"{number / GB:.4f}"


def number_of(parameters: int) -> str:
    """Parameters, in millions or billions."""
    return f"{parameters / 1e9:.2f} B" if parameters >= 1e8 else f"{parameters / 1e6:.2f} M"


def parameters_of(size: ModelSize) -> str:
    """All of a model's, and what share of them is trained where adapters are."""
    trained = "" if size.trained is None else f", {size.trained / size.parameters:.2%} trained"
    return number_of(size.parameters) + trained


def _sampling_words(temperature: float, top_p: float) -> str:
    return "greedy" if temperature == 0 else f"temperature {temperature:g}, top-p {top_p:g}"


def _objective_words(module: DistillModule) -> str:
    """The objective's class and its settings."""
    settings = {name: value for name, value in module.objective.describe().items() if name != "objective"}
    return f"{type(module.objective).__name__}({', '.join(f'{name}={value}' for name, value in settings.items())})"
