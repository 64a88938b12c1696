"""Checkpoint: saves everything a run needs to go on exactly, between two steps; on SIGTERM it saves and ends the run.

A checkpoint is taken in front of a batch, when the metrics of the step before are logged and its validation is over, so
that a resumed run repeats no step and misses none.
"""

from __future__ import annotations

import math
import signal
import threading
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import lightning as L
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from typing_extensions import override

from simct_pl.checkpointing.folder import STATE, CheckpointFolder, CheckpointProvider, FlushedIO, Manifest
from simct_pl.checkpointing.position import DataPosition
from simct_pl.errors import CheckpointError, RecipeError, RunInterrupted
from simct_pl.models.ranks import objects_of_ranks
from simct_pl.seeding import generator_states, restore_generators
from simct_pl.tracking.run_info import installed_versions
from simct_pl.training.held_out import HeldOutResult, HeldOutSample
from simct_pl.training.module import DistillModule

KEY = "simct_pl"  # of our part in Lightning's checkpoint


class Checkpoint(CheckpointProvider):
    """Saves every so many batches, at the end of the fit, and when SIGTERM arrives.

    A save that fails (a full disk) is warned about and counted in `checkpoint/failed_saves`; the run goes on, and the
    last good checkpoint stays.

    Args:
        folder: `<default_root_dir>/checkpoints` by default. every_n_steps: batches between saves.
        keep_last: checkpoints that stay on disk. best_metric: a logged metric, such as eval/accuracy; a checkpoint is
            taken whenever it is better than ever before, and the best one stays too, with its score in its manifest.
        best_mode: whether better is higher ("max") or lower ("min").
    """

    only_reports = True

    def __init__(
        self,
        folder: str | None = None,
        every_n_steps: int = 50,
        keep_last: int = 2,
        best_metric: str | None = None,
        best_mode: Literal["max", "min"] = "max",
    ) -> None:
        if every_n_steps < 1 or keep_last < 1:
            raise RecipeError(f"every_n_steps={every_n_steps}, keep_last={keep_last}; expected at least 1.")
        self.folder, self.every_n_steps, self.keep_last = folder, every_n_steps, keep_last
        self.best_metric, self.best_mode = best_metric, best_mode
        self._best_score: float | None = None
        self.io = FlushedIO()
        self.num_failed = 0
        self._saved_at = 0
        self._terminated = threading.Event()
        self._previous_handler: Any = None
        self._generators: dict[str, Any] | None = None

    @override
    def checkpoints(self, trainer: L.Trainer) -> CheckpointFolder:
        path = Path(self.folder) if self.folder else Path(trainer.default_root_dir) / "checkpoints"
        return CheckpointFolder(path.expanduser(), self.keep_last, self.best_mode if self.best_metric else None)

    @override
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Go first: a run that is to end must not wait for the next step's rollouts.

        Raises:
            RecipeError: for a strategy that writes a checkpoint as a folder, a file a rank.
        """
        if isinstance(trainer.strategy, ModelParallelStrategy) and trainer.strategy._save_distributed_checkpoint:
            raise RecipeError(
                "save_distributed_checkpoint is true; callbacks.Checkpoint writes one file, which it can check. "
                "Set it to false, as ShardedStrategy does by default."
            )
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        trainer.callbacks = [self, *(c for c in callbacks if c is not self)]  # type: ignore[attr-defined]

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take SIGTERM over from Lightning, whose handler starts a collective wherever the rank happens to be."""
        if threading.current_thread() is threading.main_thread():
            self._previous_handler = signal.signal(signal.SIGTERM, self._on_sigterm)

    def _on_sigterm(self, number: int, frame: FrameType | None) -> None:
        self._terminated.set()

    @override
    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        # The first batch of a resumed run: before anything else draws a random number.
        if self._generators is not None:
            self._continue(trainer)
        position = DataPosition.of(trainer)
        # Ranks decide together. SIGTERM may have reached one of them, and a save takes all.
        stopping = trainer.strategy.reduce_boolean_decision(self._terminated.is_set(), all=False)
        due = position.num_batches % self.every_n_steps == 0 and position.num_batches > 0
        # At most one checkpoint of a batch, whatever asks for it.
        if (due or stopping or self._new_best(trainer) is not None) and position.num_batches != self._saved_at:
            self._save(trainer, position)
        if stopping:
            raise self._interruption(trainer, position.num_batches)
        pl_module.log("checkpoint/failed_saves", float(self.num_failed), batch_size=1)

    @override
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """This callback goes first: a metric that is there now was measured before the step, and is of no new state."""
        self._best_score = self._best_so_far(trainer)

    def _interruption(self, trainer: L.Trainer, step: int) -> RunInterrupted:
        interruption = RunInterrupted(
            f"SIGTERM: the run ended after step {step}; its last checkpoint is of step {self._saved_at}. "
            "Continue it with --resume."
        )
        if not trainer.is_global_zero:  # Lightning's launcher kills rank 0 when another ends in failure before it
            interruption.exit_code = 0
        return interruption

    @override
    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._release()
        if (position := DataPosition.of(trainer)).num_batches != self._saved_at:
            self._save(trainer, position)

    @override
    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._release()

    def _release(self) -> None:
        if self._previous_handler is not None:
            signal.signal(signal.SIGTERM, self._previous_handler)
            self._previous_handler = None

    # ---- saving ----

    def _save(self, trainer: L.Trainer, position: DataPosition) -> None:
        """Collective: every rank takes part in collecting the state, rank 0 writes."""
        # Only the first rank writes, and knows; the others hear of it, so that all count the same.
        error = trainer.strategy.broadcast(self._write(trainer, position))
        if error is None:
            self._saved_at = position.num_batches
            self._best_score = self._best_so_far(trainer)
            return
        self.num_failed += 1
        rank_zero_warn(
            f"The checkpoint of step {position.num_batches} could not be saved ({error}); {self.num_failed} so far. "
            f"The run goes on; the last good checkpoint is of step {self._saved_at}."
        )

    def _new_best(self, trainer: L.Trainer) -> float | None:
        """The metric's value if it is better than any before; the same on every rank."""
        value = trainer.callback_metrics.get(self.best_metric) if self.best_metric else None
        if value is None or math.isnan(value):
            return None
        score, best = float(value), self._best_score
        if best is None or (score > best if self.best_mode == "max" else score < best):
            return score
        return None

    def _best_so_far(self, trainer: L.Trainer) -> float | None:
        score = self._new_best(trainer)
        return self._best_score if score is None else score

    def _write(self, trainer: L.Trainer, position: DataPosition) -> str | None:
        """What went wrong, if something did; on the other ranks None."""
        folder = self.checkpoints(trainer)
        staging, failure = folder.staging(position.num_batches), None
        if trainer.is_global_zero:
            try:
                folder.prepare(staging)
            except OSError as error:
                failure = str(error)  # the others wait to collect the state, so go on; it cannot be written either
        # Lightning collects the state; our writer flushes it to disk, and keeps an error until the collective is over.
        usual, trainer.strategy.checkpoint_io = trainer.strategy.checkpoint_io, self.io
        try:
            trainer.save_checkpoint(staging / STATE, weights_only=False)
        finally:
            trainer.strategy.checkpoint_io = usual
        if failure or not trainer.is_global_zero:
            return failure
        for logger in trainer.loggers:
            logger.save()  # what is logged up to here must not be younger on disk than the checkpoint
        try:
            if self.io.error is not None:
                raise OSError(str(self.io.error)) from self.io.error
            # Under its final name with its manifest, or not at all.
            folder.commit(staging, partial(self._manifest, trainer, position))
        except OSError as error:
            folder.discard(staging)  # half a checkpoint must not keep a full disk full
            return str(error)
        return None

    def _manifest(self, trainer: L.Trainer, position: DataPosition, num_bytes: int, sha256: str) -> Manifest:
        run_ids = [str(logger.version) for logger in trainer.loggers]
        step, versions = position.num_batches, installed_versions()
        score = self._new_best(trainer)
        metric = self.best_metric if score is not None else None
        return Manifest(
            step, trainer.world_size, num_bytes, sha256, self.recipe, run_ids, versions, metric=metric, score=score
        )

    @override
    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        position = DataPosition.of(trainer)
        # Lightning saves its loops as in the middle of a batch; this one is between two.
        checkpoint["loops"]["fit_loop"] = position.in_loops(checkpoint["loops"]["fit_loop"])
        own: dict[str, Any] = {
            "step": position.num_batches,
            "num_failed": self.num_failed,
            "best_score": self._best_so_far(trainer),
            "generators": objects_of_ranks(generator_states()),
        }
        if isinstance(pl_module, DistillModule):
            own["skips"] = pl_module.guarded_step.state_dict()
            own["history"] = [asdict(result) for result in pl_module.history]
        checkpoint[KEY] = own

    # ---- resuming ----

    @override
    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        own = checkpoint.get(KEY)
        if own is None or len(own["generators"]) != trainer.world_size:
            found = "of no run with callbacks.Checkpoint" if own is None else f"of {len(own['generators'])} ranks"
            raise CheckpointError(f"The checkpoint is {found}; expected one of {trainer.world_size} ranks.")
        self._saved_at, self.num_failed = own["step"], own["num_failed"]
        self._best_score = own.get("best_score")  # not in those of earlier versions
        # The generators wait: setting up still draws. They are put back in front of the first batch.
        self._generators = own["generators"][trainer.global_rank]
        if isinstance(pl_module, DistillModule):
            pl_module.guarded_step.load_state_dict(own["skips"])
            pl_module.history = [_held_out_result(values) for values in own["history"]]

    def _continue(self, trainer: L.Trainer) -> None:
        """In front of the first batch: setting a run up draws random numbers, and Lightning counts a step for the
        loggers twice when validation was due at the step that it resumes from.
        """
        assert self._generators is not None
        restore_generators(self._generators)
        self._generators = None
        trainer.fit_loop.epoch_loop._batches_that_stepped = self._saved_at
        rank_zero_info(f"Continuing after step {self._saved_at}.")


def _held_out_result(values: dict[str, Any]) -> HeldOutResult:
    samples = [HeldOutSample(**sample) for sample in values["samples"]]
    return HeldOutResult(values["step"], values["metrics"], samples)
