"""Whether a run may go on from a checkpoint: which one, and whether the recipe is still the same where it matters."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from simct_pl.checkpointing.folder import CheckpointFolder, SavedCheckpoint
from simct_pl.errors import CheckpointError, RecipeError

NEVER, AUTO = "never", "auto"

# Keys that change what is reported, where it is written, and nothing that is computed.
REPORTS = (
    "trainer.default_root_dir",
    "trainer.logger",
    "trainer.log_every_n_steps",
    "trainer.enable_progress_bar",
    "trainer.enable_model_summary",
    "trainer.enable_checkpointing",
    "trainer.profiler",
)
# Keys that change speed and memory, and the numbers by their rounding alone.
ROUNDING = (
    "model.init_args.micro_batch_tokens",
    "model.init_args.teacher_batch_tokens",
    "model.init_args.chunk_tokens",
    "model.init_args.gradient_checkpointing",
)


def choose_checkpoint(resume: str, folder: CheckpointFolder | None) -> SavedCheckpoint | None:
    """The checkpoint a fit starts from; None is the beginning.

    Args:
        resume: "never", "auto" (the newest good one; the beginning if there is none yet), or a checkpoint's folder.
        folder: of the run's checkpoints; None when the recipe saves none.

    Raises:
        RecipeError: if there is something to resume, but no callback to do it.
        CheckpointError: if a new run would be mixed with checkpoints that are there, or nothing whole is found.
    """
    if folder is None:
        if resume != NEVER:
            raise RecipeError("--resume needs callbacks.Checkpoint in the recipe; add it with trainer.callbacks+.")
        return None
    # A new run: never into another one's folder, where its checkpoints would be taken for this one's.
    if resume == NEVER:
        if steps := folder.steps():
            raise CheckpointError(
                f"{folder.path} holds checkpoints of an earlier run, the last of step {steps[-1]}. Continue it with "
                "--resume, or remove that folder, or choose another trainer.default_root_dir."
            )
        return None
    # A checkpoint of the user's choice: that one or none, whatever else is in the folder.
    if resume != AUTO:
        try:
            return SavedCheckpoint.read(Path(resume).expanduser())
        except CheckpointError as error:
            raise CheckpointError(
                f"{error} Give another step-… folder, or --resume alone for the newest good one."
            ) from error
    found = folder.newest_good()
    if found is None:
        rank_zero_info(f"No checkpoint in {folder.path} yet; the run starts from the beginning.")
    return found


def check_same_run(checkpoint: SavedCheckpoint, recipe: str, num_ranks: int) -> None:
    """Refuse to continue a run with other numbers; warn about what changes them by rounding alone.

    Args:
        recipe: resolved, as YAML.

    Raises:
        RecipeError: naming the keys that differ, with both values.
    """
    manifest = checkpoint.manifest
    if manifest.num_ranks != num_ranks:
        raise RecipeError(
            f"{checkpoint.path} is of {manifest.num_ranks} ranks, this run has {num_ranks}. Resume on as many: each "
            "rank has its own place in the data."
        )
    # Key by key, so that the error can name them; what only reports has left both sides.
    before, now = _flat(manifest.recipe_values()), _flat(yaml.safe_load(recipe) or {})
    differing = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    serious = [key for key in differing if key not in ROUNDING]
    if serious:
        changes = "; ".join(f"{key}: {before.get(key)!r} → {now.get(key)!r}" for key in serious)
        raise RecipeError(
            f"The recipe differs from the checkpoint's ({checkpoint.path}): {changes}. A continued run keeps its "
            "recipe. Put these back, or start a new run in another trainer.default_root_dir."
        )
    if differing:
        rank_zero_warn(f"Differs from the checkpoint's recipe, and may change results by rounding: {differing}.")


def _flat(recipe: dict[str, Any]) -> dict[str, Any]:
    """Dotted keys of everything that can change a run's numbers."""
    flat = {}
    for key, value in _leaves("", recipe):
        if not any(key == report or key.startswith(f"{report}.") for report in REPORTS):
            flat[key] = value
    return flat


def _leaves(prefix: str, value: Any) -> list[tuple[str, Any]]:
    if prefix == "trainer.callbacks" and isinstance(value, list):
        value = _by_class(value)
    if not isinstance(value, dict) or not value:
        return [(prefix, value)]
    parts = [_leaves(f"{prefix}.{key}".removeprefix("."), inner) for key, inner in value.items()]
    return [leaf for part in parts for leaf in part]


def _by_class(callbacks: list[Any]) -> dict[str, Any]:
    """Callbacks by class name, without those that only report: their order and number may differ."""
    described = [entry if isinstance(entry, dict) else {"class_path": entry} for entry in callbacks]
    paths = [str(entry.get("class_path")) for entry in described]
    return {
        path.rpartition(".")[2]: entry.get("init_args", {})
        for path, entry in zip(paths, described, strict=True)
        if not only_reports(path)
    }


def only_reports(class_path: str) -> bool:
    """Whether a callback class has the attribute `only_reports`, and it is true: its runs have the numbers of those
    without it. Nothing is imported: a class of the run is loaded, and a checkpoint's recipe may name any module.
    """
    module, _, name = class_path.rpartition(".")
    return bool(getattr(getattr(sys.modules.get(module), name, None), "only_reports", False))
