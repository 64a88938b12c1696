"""The README.md of an exported student: which pair, which objective, what came out, and the recipe to do it again."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import ModelCardData

from simct_pl.tracking.run_info import RunInfo
from simct_pl.training.held_out import HeldOutResult
from simct_pl.training.module import DistillModule

TAGS = ["distillation", "on-policy-distillation", "cross-tokenizer-distillation", "simct_pl"]


def model_card(name: str, module: DistillModule, num_steps: int, info: RunInfo | None) -> str:
    """A model card in the hub's form: YAML, then Markdown.

    Args:
        name: of the exported folder. num_steps: optimizer steps behind the weights.
        info: without one, the card holds no recipe and no versions.

    A model that is a local folder is called by the folder's name alone; the recipe is as it ran, paths and all.
    """
    student, teachers = (
        public_name(module.starts_from),
        [public_name(lesson.path) for lesson in module.lessons.values()],
    )
    bases = [path for path in (module.starts_from,) if not Path(path).exists()]
    data = ModelCardData(
        library_name="transformers", pipeline_tag="text-generation", tags=TAGS, base_model=bases[0] if bases else None
    )
    words = " and ".join(f"`{teacher}`" for teacher in teachers)
    variant = ", ".join(f"{key} {value}" for key, value in module.objective.describe().items())
    parts = [
        f"---\n{data.to_yaml()}\n---\n\n# {name}",
        f"`{student}`, taught by {words} for {num_steps:,} optimizer steps: the student answered prompts, and the "
        f"teacher{'s' * (len(teachers) > 1)}, reading another tokenizer's tokens or the same, graded every token of "
        "them.",
        f"- objective: `{type(module.objective).__name__}` ({variant})\n- units: `{type(module.aligner).__name__}`",
    ]
    if module.history:
        parts.append(_figures(module.history[0], module.history[-1]))
    if info is not None:
        versions = ", ".join(f"{package} {number}" for package, number in info.versions.items())
        parts.append(f"## Recipe\n\n```yaml\n{info.recipe.strip()}\n```\n\nWith {versions}.")
    return "\n\n".join(parts) + "\n"


def public_name(path: str) -> str:
    """A hub name as it is; of a local folder its own name and no more."""
    return Path(path).name if Path(path).exists() else path


def _figures(before: HeldOutResult, after: HeldOutResult) -> str:
    """The held-out metrics of the first and the last validation."""
    header = f"## Held-out prompts\n\n| metric | step {before.step} | step {after.step} |\n|---|--:|--:|\n"
    rows = [f"| {key} | {before.metrics[key]:.4g} | {value:.4g} |" for key, value in after.metrics.items()]
    return header + "\n".join(rows)
