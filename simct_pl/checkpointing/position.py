"""Where a run stands in its data, and Lightning's loop counters written for exactly that place.

A place lies between two batches: metrics of the last one are logged, a due validation is over, nothing of the next one
has been trained. Lightning's own counters differ with the hook they are read in; here they are brought to one form.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import lightning as L
from torch.utils.data import DataLoader


@dataclass(frozen=True)
class DataPosition:
    """epoch: passes over the data that are over. batch: batches trained of the current one, on each rank. num_batches:
    batches trained in all (optimizer steps, unless some were skipped).
    """

    epoch: int = 0
    batch: int = 0
    num_batches: int = 0

    @classmethod
    def of(cls, trainer: L.Trainer) -> DataPosition:
        """Where a fit stands; in `on_train_batch_start` of a batch, in `on_train_end` or in between."""
        passes: Any = trainer.fit_loop.epoch_progress.current  # typed as its base class
        batches = trainer.fit_loop.epoch_loop.batch_progress
        total = batches.total.completed
        if passes.processed < passes.started:  # in the middle of a pass
            return cls(passes.processed, batches.current.completed, total)
        # Between passes: the last one was complete, or none has begun.
        if batches.is_last_batch or passes.processed == 0:
            return cls(passes.processed, 0, total)
        return cls(passes.processed - 1, batches.current.completed, total)  # the last step came before the pass's end

    def in_loops(self, fit_loop: dict[str, Any]) -> dict[str, Any]:
        """The state of Lightning's fit loop as it restarts from in front of a batch, whatever hook it was read in."""
        # A pass is begun and not over, a batch is over and the next not begun: one form, whatever hook asks.
        started, epoch = self.epoch + 1, self.epoch
        passes = {"ready": started, "started": started, "processed": epoch, "completed": epoch}
        names = ("ready", "started", "processed", "completed")
        batches = {
            "total": dict.fromkeys(names, self.num_batches),
            "current": dict.fromkeys(names, self.batch),
            "is_last_batch": False,
        }
        return {
            **fit_loop,
            "epoch_progress": {"total": passes, "current": dict(passes)},
            "epoch_loop.batch_progress": batches,
        }


class ContinuedLoader(DataLoader[Any]):
    """A loader that begins where a checkpoint ended; its length stays that of a whole pass."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the place is the data module's. Lightning asks, to know that the loader can be resumed."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing, for the same reason."""
