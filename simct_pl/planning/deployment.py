"""Deployment: on what, and for how long, a recipe's trainer would run.

In: the trainer's section of a recipe, components made, but no trainer: a login node may plan a run of eight GPUs. Out:
Deployment.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy

from simct_pl.errors import RecipeError
from simct_pl.models.sharding import Sharding
from simct_pl.planning.step import GPU_MEMORY

ASSUMED_GPU = "h100"


@dataclass(frozen=True)
class Deployment:
    """Ranks, and what each of them runs on.

    gpu: a name in GPU_MEMORY, or None for CPUs. is_assumed: no GPU was found here and the recipe names none. sharded:
    the strategy is one of FSDP2. buckets: it is DDP, whose buckets are a second copy of the gradients. precision: the
    trainer's. max_steps: None where the recipe sets none.
    """

    num_nodes: int
    devices_per_node: int
    gpu: str | None
    is_assumed: bool
    sharded: bool
    buckets: bool
    strategy: str
    precision: str
    max_steps: int | None

    @classmethod
    def of(cls, trainer: Mapping[str, Any], gpu: str | None = None) -> Deployment:
        """Read a trainer's settings.

        gpu: a name in GPU_MEMORY, for another machine than this one.

        Raises:
            RecipeError: for a GPU that is not known, or settings that cannot be planned.
        """
        on_cpu = trainer["accelerator"] == "cpu"
        strategy = trainer["strategy"]
        name = strategy if isinstance(strategy, str) else type(strategy).__name__
        steps = trainer["max_steps"]
        found = None if on_cpu else gpu or _gpu_here()
        if found not in (None, *GPU_MEMORY):
            raise RecipeError(
                f"GPU {found!r} is not known; expected one of {', '.join(GPU_MEMORY)}. Name one to plan for: --dry_run "
                "h100 (preflight: --hardware h100)."
            )
        num_nodes, devices = trainer["num_nodes"], _num_devices(trainer["devices"], on_cpu)
        return cls(
            num_nodes=num_nodes,
            devices_per_node=devices,
            gpu=None if on_cpu else found or ASSUMED_GPU,
            is_assumed=not on_cpu and found is None,
            sharded=isinstance(strategy, ModelParallelStrategy),
            buckets=_has_buckets(strategy, num_nodes * devices),
            strategy=name,
            precision=str(trainer["precision"] or "32-true"),
            max_steps=steps if steps is not None and steps > 0 else None,
        )

    @property
    def num_ranks(self) -> int:
        return self.num_nodes * self.devices_per_node

    @property
    def memory(self) -> float:
        """Bytes that one rank may use: a GPU's, or its share of this machine's."""
        if self.gpu is not None:
            return GPU_MEMORY[self.gpu]
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / self.devices_per_node

    @property
    def words(self) -> str:
        device = self.gpu.upper() if self.gpu else "CPU process" + ("es" if self.num_ranks > 1 else "")
        nodes = f"{self.num_nodes} nodes of " if self.num_nodes > 1 else ""
        assumed = " (assumed: no GPU here)" if self.is_assumed else ""
        return f"{nodes}{self.devices_per_node} {device}{assumed}, strategy {self.strategy}, precision {self.precision}"

    def check(self, sharding: Sharding | None) -> None:
        """What `checks.check_trainer` refuses of a real trainer, as far as settings tell.

        Raises:
            RecipeError: naming the two values that do not fit.
        """
        if self.precision.startswith("16"):
            raise RecipeError(f"trainer.precision is {self.precision!r}; use bf16-mixed or 32: losses are not scaled.")
        if (sharding is not None) != self.sharded:
            raise RecipeError(
                f"model.init_args.sharding is {'set' if sharding else 'not set'}, and trainer.strategy is "
                f"{self.strategy}; sharding and simct_pl.models.sharding.ShardedStrategy go together."
            )
        if sharding is not None and self.num_ranks % sharding.replicate:
            raise RecipeError(f"sharding.replicate={sharding.replicate} does not divide the {self.num_ranks} ranks.")


def _has_buckets(strategy: object, num_ranks: int) -> bool:
    """Whether gradients are kept twice. Lightning's `auto` is DDP where there are several ranks."""
    if isinstance(strategy, DDPStrategy):
        return not strategy._ddp_kwargs.get("gradient_as_bucket_view", False)
    return isinstance(strategy, str) and (strategy.startswith("ddp") or (strategy == "auto" and num_ranks > 1))


def _num_devices(devices: int | str | list[int], on_cpu: bool) -> int:
    """Of one node; `auto` and -1 are all GPUs here, or one.

    Raises:
        RecipeError: for what is no number of devices, nor a list of them.
    """
    if devices in ("auto", -1, "-1"):
        return 1 if on_cpu else max(torch.cuda.device_count(), 1)
    if isinstance(devices, str) and "," in devices:
        devices = [int(part) for part in devices.split(",") if part.strip().isdecimal()]
    number = len(devices) if isinstance(devices, list) else int(devices) if str(devices).isdecimal() else 0
    if number < 1:
        raise RecipeError(f"trainer.devices is {devices!r}; expected how many, a list of GPUs, -1 or auto.")
    return number


def _gpu_here() -> str | None:
    """The name in GPU_MEMORY of this machine's first GPU."""
    if not torch.cuda.is_available():
        return None
    called = torch.cuda.get_device_name(0).lower()
    return next((name for name in GPU_MEMORY if name in called), called)
