"""What rehearsals say of memory against what small models hold on this machine, in a fresh process.

python -m benchmarks.memory_checks
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import jsonargparse
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from benchmarks.architectures import tiny_configs
from benchmarks.measure import in_fresh_process, peak_memory
from simct_pl.rehearsal.ledger import Ledger
from simct_pl.rehearsal.models import ModelSource
from simct_pl.rehearsal.training import Stage, Training, WithLoss, rehearse


@dataclass(frozen=True)
class Check:
    """Bytes twice. case: of what."""

    case: str
    rehearsed: float
    measured: float

    @property
    def ratio(self) -> float:
        return self.rehearsed / self.measured


def resident_checks(
    names: tuple[str, ...] = ("Llama", "Gemma-3", "Mixtral"), num_sequences: int = 4, length: int = 1024
) -> list[Check]:
    """What forward and backward of small models add to a fresh process."""
    checks = []
    for name in names:
        config = tiny_configs(hidden_size=256, intermediate_size=768)[name]
        for checkpointing in (False, True):
            ledger = rehearse_body(config, checkpointing, num_sequences, length)
            phases = ("student_forward", "student_backward")
            rehearsed = max(ledger.most_in[phase] for phase in phases) - sum(ledger.at_rest.values())
            with freed_at_once():
                measured = in_fresh_process(measured_body_bytes, config.to_dict(), checkpointing, num_sequences, length)
            checks.append(Check(name + (", checkpointed" if checkpointing else ""), rehearsed, measured))
    return checks


def rehearse_body(
    config: PretrainedConfig, checkpointing: bool, num_sequences: int, length: int, dtype: torch.dtype = torch.float32
) -> Ledger:
    """Forward and backward of a model's body alone, gradients there before."""

    def with_loss(model: PreTrainedModel, stage: Stage) -> WithLoss:
        def forward() -> Tensor:
            with stage.phases("student_forward"):
                return states_of(model, num_sequences, length).sum()

        return WithLoss(model, forward, lambda: [{"params": list(model.parameters())}])

    training = Training(ModelSource(config), dtype, gradient_checkpointing=checkpointing)
    return rehearse(training, with_loss, "cpu")


def measured_body_bytes(config: dict[str, Any], checkpointing: bool, num_sequences: int, length: int) -> int:
    """What one more forward and backward adds to the process; call it in a fresh one."""
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config)).train()
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    states_of(model, 1, 8).sum().backward()  # gradients, threads and libraries are there before
    with peak_memory() as peak:
        states_of(model, num_sequences, length).sum().backward()
    return peak.extra


def states_of(model: Any, num_sequences: int, length: int) -> Tensor:
    """Last hidden states of the body."""
    ids_BS = torch.ones(num_sequences, length, dtype=torch.int64)
    states_BSH: Tensor = model.get_decoder()(input_ids=ids_BS.to(model.device), use_cache=False).last_hidden_state
    return states_BSH


@contextmanager
def freed_at_once() -> Iterator[None]:
    """Processes started inside give large blocks back to the system when they are freed, instead of keeping them for
    later: resident memory then follows the tensors.
    """
    name = "MALLOC_MMAP_THRESHOLD_"  # glibc reads it when a process starts
    before = os.environ.get(name)
    os.environ[name] = str(2**16)
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def main() -> None:
    """Print rehearsed and measured MiB of each model."""
    for check in resident_checks():
        print(f"{check.case}: {check.rehearsed / 2**20:.1f}, {check.measured / 2**20:.1f}, {check.ratio:.2f}")


if __name__ == "__main__":
    jsonargparse.auto_cli(main)
