"""Checkpoints on disk: whole or not there, checked by size and hash before they are read, the newest few kept.

    folder/step-00000040/state.ckpt       what Lightning saves; plain types and tensors only
    folder/step-00000040/manifest.json    size, hash, step, ranks, recipe, versions

A checkpoint is written into a hidden sibling, flushed, and renamed. Whatever is cut short has no valid manifest.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal

import lightning as L
import torch
import yaml
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_warn
from typing_extensions import override

from simct_pl.errors import CheckpointError, first_line
from simct_pl.files.atomic import flush, put_folder
from simct_pl.files.fingerprint import FileFingerprint
from simct_pl.tracking.run_info import RunInfoReader

STATE, MANIFEST = "state.ckpt", "manifest.json"
NAME = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True)
class Manifest:
    """step: batches trained. num_ranks: of the run. num_bytes, sha256: of the state file. recipe: resolved, as YAML.
    run_ids: of the trackers. versions: package → version. metric, score: what the best checkpoint is chosen by, where
    this one was the best so far.
    """

    step: int
    num_ranks: int
    num_bytes: int
    sha256: str
    recipe: str
    run_ids: list[str]
    versions: dict[str, str]
    metric: str | None = None
    score: float | None = None

    @classmethod
    def read(cls, checkpoint: Path) -> Manifest:
        """The manifest in a checkpoint's folder, every value of the type that it was written with.

        Raises:
            CheckpointError: naming the file, if anything else is there.
        """
        broken = f"{checkpoint} is no whole checkpoint: {MANIFEST}"
        try:
            found = cls(**json.loads((checkpoint / MANIFEST).read_bytes()))
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise CheckpointError(f"{broken} cannot be read: {first_line(error)}.") from error
        # A byte changed inside a number or a quote is still JSON; the types are what later code relies on.
        for name, kind in MANIFEST_TYPES.items():
            value = getattr(found, name)
            if not isinstance(value, kind) or isinstance(value, bool):
                raise CheckpointError(f"{broken} says that {name} is {value!r:.80}, which no run has written.")
        return found

    def recipe_values(self) -> dict[str, Any]:
        """The recipe as nested mappings.

        Raises:
            ValueError: if it is no YAML, or no mapping.
        """
        try:
            values = yaml.safe_load(self.recipe) or {}
        except (yaml.YAMLError, RecursionError) as error:
            raise ValueError(first_line(error)) from error
        if not isinstance(values, dict):
            raise ValueError(f"{self.recipe!r:.80} is no mapping")
        return values


MANIFEST_TYPES: dict[str, type | UnionType] = {
    **{"step": int, "num_ranks": int, "num_bytes": int, "sha256": str, "recipe": str, "run_ids": list},
    **{"versions": dict, "metric": str | None, "score": float | int | None},
}


@dataclass(frozen=True)
class SavedCheckpoint:
    """A checkpoint whose state file is as long as its manifest says and has the same hash."""

    path: Path
    manifest: Manifest

    @property
    def state(self) -> Path:
        return self.path / STATE

    @classmethod
    def read(cls, path: Path) -> SavedCheckpoint:
        """Check a checkpoint's folder; the state itself is not unpickled.

        Raises:
            CheckpointError: if it was cut short or changed.
        """
        manifest = Manifest.read(path)
        try:
            manifest.recipe_values()
            found = FileFingerprint.of(path / STATE)
            if found.num_bytes != manifest.num_bytes:
                raise CheckpointError(f"{path / STATE} has {found.num_bytes} bytes; expected {manifest.num_bytes}.")
            if found.sha256 != manifest.sha256:
                raise CheckpointError(f"{path / STATE} is not what was written: its hash differs from the manifest's.")
        except OSError as error:
            raise CheckpointError(f"{path} is no whole checkpoint: {error}.") from error
        except ValueError as error:
            raise CheckpointError(f"{path} is no whole checkpoint: the recipe in {MANIFEST}: {error}.") from error
        return cls(path, manifest)


class CheckpointFolder:
    """The checkpoints of one run, by step.

    Args:
        path: made at the first save. keep_last: checkpoints that stay; older ones are removed after each save.
        best: whether the one with the highest ("max") or lowest ("min") score stays beside them; None: none does.
    """

    def __init__(self, path: Path, keep_last: int = 2, best: Literal["max", "min"] | None = None) -> None:
        self.path, self.keep_last, self.best = path, keep_last, best

    def steps(self) -> list[int]:
        """Steps of all checkpoints that were renamed into place, good or not, oldest first."""
        names = os.listdir(self.path) if self.path.is_dir() else []
        return sorted(int(match.group(1)) for name in names if (match := NAME.fullmatch(name)))

    def of_step(self, step: int) -> Path:
        return self.path / f"step-{step:08d}"

    def newest_good(self) -> SavedCheckpoint | None:
        """The newest whole checkpoint, or None when there is none at all; what is skipped is warned about by name.

        Raises:
            CheckpointError: if there are checkpoints, and all are broken.
        """
        # Hashing reads all of a checkpoint: newest first, and no further than the first good one.
        broken: list[str] = []
        for step in reversed(self.steps()):
            try:
                found = SavedCheckpoint.read(self.of_step(step))
            except CheckpointError as error:
                broken.append(str(error))
                continue
            if broken:
                rank_zero_warn(f"Broken: {' '.join(broken)} Using {found.path} instead.")
            return found
        if broken:
            raise CheckpointError(
                f"No checkpoint in {self.path} is whole: {' '.join(broken)} Put a copy of one there, or remove the "
                "folder and begin anew."
            )
        return None

    def best_step(self) -> int | None:
        """Step of the checkpoint with the best score, the first of equals; None if none has one or none is wanted."""
        # Signs are turned so that the highest is best either way; of equals, max() takes the first.
        scores: dict[int, float] = {}
        for step in self.steps() if self.best else ():
            try:
                score = Manifest.read(self.of_step(step)).score
            except CheckpointError:  # a broken one is not the best
                continue
            if score is not None:
                scores[step] = score if self.best == "max" else -score
        return max(scores, key=lambda step: scores[step], default=None)

    def staging(self, step: int) -> Path:
        """The hidden folder that a checkpoint is written into."""
        return self.path / f".step-{step:08d}.part"

    def prepare(self, staging: Path) -> None:
        """Make a staging folder, empty; what earlier saves left when they were killed is removed."""
        self.path.mkdir(parents=True, exist_ok=True)
        for left_over in self.path.glob(".step-*"):
            shutil.rmtree(left_over, ignore_errors=True)
        staging.mkdir()

    def discard(self, staging: Path) -> None:
        """Remove what could not be finished."""
        shutil.rmtree(staging, ignore_errors=True)

    def commit(self, staging: Path, manifest: Callable[[int, str], Manifest]) -> Path:
        """Write the manifest, flush, rename into place, remove old ones. manifest: made from bytes and hash.

        Raises:
            OSError: if the disk does not take it; what was there before stays.
        """
        state = FileFingerprint.of(staging / STATE)
        written = manifest(state.num_bytes, state.sha256)
        (staging / MANIFEST).write_text(json.dumps(asdict(written), indent=1), encoding="utf-8")
        flush(staging / MANIFEST)
        final, aside = self.of_step(written.step), self._aside(written.step)
        put_folder(staging, final, aside)  # over that of a run that went on from an earlier checkpoint
        shutil.rmtree(aside, ignore_errors=True)
        best = self.best_step()
        for step in self.steps()[: -self.keep_last]:
            if step != best:
                self.of_step(step).rename(self._aside(step))  # cut short here, it is no checkpoint any more
                shutil.rmtree(self._aside(step), ignore_errors=True)
        return final

    def _aside(self, step: int) -> Path:
        """Where a checkpoint goes that is to be removed; `prepare` removes what is left there."""
        return self.path / f".step-{step:08d}.old"


class FlushedIO(TorchCheckpointIO):
    """Writes straight to the file and flushes it. What goes wrong is kept in `error`, not raised: only rank 0 writes,
    and the others would wait for it for ever.
    """

    def __init__(self) -> None:
        self.error: Exception | None = None

    @override
    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        self.error = None
        try:
            with open(path, "wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
        except (OSError, RuntimeError) as error:  # torch's zip writer turns some OSErrors into RuntimeErrors
            self.error = error


class CheckpointProvider(L.Callback, RunInfoReader):
    """A callback that saves and restores runs; `--resume` needs one in the recipe. The recipe that it is told is
    compared when a run is resumed.
    """

    @abstractmethod
    def checkpoints(self, trainer: L.Trainer) -> CheckpointFolder:
        """Where this run's checkpoints are."""
