"""Seconds and share of each phase of a step, tokens a second, peak memory and padding: what a run costs, and where."""

from __future__ import annotations

import sys

import lightning as L
import torch
from rich.console import Console
from rich.table import Table
from typing_extensions import override

from callbacks.distilled import distilled
from simct_pl.training.step_timer import PHASES, Lap
from simct_pl.types import PromptBatch

# Of these the worst rank counts; of all else the mean.
WORST_RANK = ("timing/step_seconds", "timing/peak_memory_gib")


class TimingCallback(L.Callback):
    """Logs the `timing/` group each step, and prints where the time of the fit went. Validation is in no step.

    timing/seconds/<phase>, timing/share/<phase>: see simct_pl.training.step_timer.PhaseName; a step ends where this
        callback's on_train_batch_end runs, and what comes after it is in the next step's "other".
    timing/step_seconds: of the slowest rank. timing/tokens_per_second: response tokens of all ranks.
    timing/alignment_worker_seconds: that the aligning thread was busy; the step waited timing/seconds/alignment for it.
    timing/peak_memory_gib: on CUDA of the step's tensors, on a CPU of the process since it began; of the fullest rank.
    timing/padding_share_student, timing/padding_share_teacher: positions of the forwards that held no token.

    On CUDA the step waits for the device once, at its end.
    """

    only_reports = True

    def __init__(self) -> None:
        self.total: Lap | None = None  # of this rank
        self.num_steps = self.num_response_tokens = 0
        self.peak_memory_gib = 0.0

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.total, self.num_steps, self.num_response_tokens, self.peak_memory_gib = None, 0, 0, 0.0
        peak_memory_bytes(pl_module.device)  # on CUDA: what came before the first step is no step's peak
        distilled(self, pl_module).phases.start(pl_module.device)

    @override
    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        distilled(self, pl_module).phases.pause()

    @override
    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        distilled(self, pl_module).phases.resume()

    @override
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: object, batch: PromptBatch, batch_idx: int
    ) -> None:
        assert batch.record is not None
        lap = distilled(self, pl_module).phases.lap()
        metrics = lap_metrics(lap) | {"timing/peak_memory_gib": peak_memory_bytes(pl_module.device) / 2**30}
        metrics = _over_ranks(pl_module, metrics)
        metrics["timing/tokens_per_second"] = batch.record.num_global_tokens / metrics["timing/step_seconds"]
        pl_module.log_dict(metrics, batch_size=len(batch))
        self.total = lap if self.total is None else self.total + lap
        self.num_steps += 1
        self.num_response_tokens += batch.record.num_global_tokens
        self.peak_memory_gib = max(self.peak_memory_gib, metrics["timing/peak_memory_gib"])

    @override
    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        distilled(self, pl_module).phases.stop()

    @override
    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        distilled(self, pl_module).phases.stop()

    @override
    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero and self.total is not None:
            Console().print(self.table(self.total))

    def table(self, total: Lap) -> Table:
        """Where the time of all steps went."""
        table = Table(title=f"Time of {self.num_steps} training steps")
        for column in ("phase", "seconds a step", "share"):
            table.add_column(column, justify="left" if column == "phase" else "right")
        for name, seconds in (*total.seconds.items(), ("step", total.total_seconds)):
            share = seconds / total.total_seconds
            table.add_row(name, f"{seconds / self.num_steps:.3f}", f"{share:.1%}", end_section=name == PHASES[-1])
        table.caption = (
            f"{self.num_response_tokens / total.total_seconds:,.0f} response tokens a second\n"
            f"{self.peak_memory_gib:.1f} GiB at the peak\n"
            f"padding: student {total.padding_share('student'):.1%}, teacher {total.padding_share('teacher'):.1%}\n"
            f"alignment thread: {total.worker_seconds / self.num_steps:.3f} seconds a step"
        )
        return table


def lap_metrics(lap: Lap) -> dict[str, float]:
    """One rank's metrics of a step; the same names at every step."""
    metrics = {f"timing/seconds/{phase}": lap.seconds[phase] for phase in PHASES}
    metrics |= {f"timing/share/{phase}": lap.seconds[phase] / lap.total_seconds for phase in PHASES}
    return metrics | {
        "timing/step_seconds": lap.total_seconds,
        "timing/alignment_worker_seconds": lap.worker_seconds,
        "timing/padding_share_student": lap.padding_share("student"),
        "timing/padding_share_teacher": lap.padding_share("teacher"),
    }


def peak_memory_bytes(device: torch.device) -> int:
    """Most bytes of tensors on a CUDA device since the last call; elsewhere, of the process's memory since it began."""
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        return peak
    import resource  # POSIX has it; elsewhere the other callbacks must still import

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _over_ranks(module: L.LightningModule, metrics: dict[str, float]) -> dict[str, float]:
    """The metrics of all ranks as one each, in a single exchange."""
    # One vector of all metrics: to ask the ranks for each would cost an exchange a metric.
    gathered = module.all_gather(torch.tensor(list(metrics.values()), dtype=torch.float64, device=module.device))
    assert isinstance(gathered, torch.Tensor)
    ranks_RM = gathered.reshape(-1, len(metrics))
    means, worst = ranks_RM.mean(0).tolist(), ranks_RM.amax(0).tolist()
    return {name: worst[i] if name in WORST_RANK else means[i] for i, name in enumerate(metrics)}
