"""Supervised fits of the tiny student on two ranks, by DDP and by FSDP2; each leaves a file to compare.

python -m tests.distributed.supervised_runs FOLDER
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import Strategy

from simct_pl.models.packing import PackedRow
from simct_pl.models.sharding import ShardedStrategy, Sharding, full_parameters
from simct_pl.tasks.arithmetic import TotalGrader
from simct_pl.training.optim import OptimizerConfig
from simct_pl.types import PromptBatch
from simct_pl.warmup import SFTModule
from tests.distributed.runs import GLOBAL_BATCH, Data, main
from tests.tiny import ASSETS, trainer

NUM_STEPS = 3


class Losses(L.Callback):
    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: PromptBatch, batch_idx: int
    ) -> None:
        self.values.append(float(trainer.callback_metrics["loss/train"]))


def fit(folder: Path, name: str, strategy: Strategy | str = "auto", num_ranks: int = 1, **options: Any) -> None:
    """Fit with packed rows so short that ranks get several, and not the same number; rank 0 leaves `<name>.pt`."""
    module = SFTModule(
        str(ASSETS / "student"),
        str(folder / f"{name}-export"),
        optimizer=OptimizerConfig(lr=1e-4),
        grader=TotalGrader(),
        layout=PackedRow(),
        micro_batch_tokens=100,
        **options,
    )
    losses = Losses()
    run = trainer(folder, callbacks=[losses], max_steps=NUM_STEPS, strategy=strategy, devices=num_ranks)
    data = Data(batch_size=GLOBAL_BATCH // num_ranks, num_train_batches=NUM_STEPS, num_val_prompts=5)
    run.fit(module, datamodule=data)
    weights = {key: weight.clone() for key, weight in full_parameters(module.model)}
    held_out = {key: float(value) for key, value in run.callback_metrics.items() if key.startswith("eval/")}
    if run.is_global_zero:
        torch.save({"losses": losses.values, "weights": weights, "held_out": held_out}, folder / f"{name}.pt")


def on_two_ranks(folder: Path) -> None:
    fit(folder, "ddp", "ddp", num_ranks=2)
    fit(folder, "fsdp2", ShardedStrategy(), num_ranks=2, sharding=Sharding(), gradient_checkpointing=True)


if __name__ == "__main__":
    sys.exit(main(partial(on_two_ranks, Path(sys.argv[1]))))
