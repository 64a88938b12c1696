"""Short fits of an objective with parameters of its own, on one rank or two: the traces of runs.py, and its projectors.

python -m tests.distributed.projector_runs FOLDER
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import torch
from lightning.pytorch.strategies import Strategy

from callbacks import HFExport
from simct_pl import DSKDCma
from simct_pl.models.sharding import ShardedStrategy, full_parameters
from tests.distributed.runs import RAGGED, SHARDED, HalfDeaf, Trace, fit, main
from tests.tiny import unloaded_module


def projected(
    folder: Path,
    name: str,
    num_ranks: int,
    strategy: Strategy | str = "auto",
    resume: Path | None = None,
) -> Trace:
    """Fit `cma`, half of whose prompts are graded; weights are those of student and projectors."""
    sharding = SHARDED if isinstance(strategy, ShardedStrategy) else None
    ragged = RAGGED if num_ranks > 1 else {}
    module = unloaded_module(kind=HalfDeaf, objective=DSKDCma(), sharding=sharding, **ragged)
    exports = [HFExport(str(folder / f"{name}-export"))] if name == "fsdp2 cma" else []
    trace = fit(folder, name, module, strategy=strategy, num_ranks=num_ranks, resume=resume, exports=exports)
    trace.weights |= {
        f"projectors.{name}": w.clone()
        for name, w in full_parameters(module.student_with_loss.loss_of("teacher").projectors)
    }
    if module.trainer.is_global_zero:
        torch.save(vars(trace), folder / f"{name}.pt")
    return trace


def on_two_ranks(folder: Path) -> None:
    projected(folder, "ddp cma", 2, "ddp")
    projected(folder, "fsdp2 cma", 2, ShardedStrategy())
    projected(folder, "resumed cma", 2, ShardedStrategy(), folder / "fsdp2 cma.ckpt")


if __name__ == "__main__":
    sys.exit(main(partial(on_two_ranks, Path(sys.argv[1]))))
