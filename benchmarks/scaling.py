"""Memory of a step that does not fit on this machine, on paper: Qwen2.5-7B teaches Gemma-2-2B on 8 GPUs.

The first table is a prediction of simct_pl/planning; no GPU was used. The second compares such predictions with what
small models and the loss really hold here.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jsonargparse
import torch
from rich.progress import track

from benchmarks import memory_checks
from benchmarks.layouts import GB, MeasuredPair
from benchmarks.memory_checks import Check
from benchmarks.report import publish, table
from simct_pl.planning.memory import MemoryItem, peak_bytes
from simct_pl.planning.step import StepShape

LEFT_OUT = """
Responses of unequal length, what kernels need inside, fragmentation and the CUDA context come on top. The bodies are
followed through PyTorch's CPU operators, attention through its flash kernel.
"""
CALIBRATED = """
The loss's temporaries were once read off counts like these; what is tested is that they hold at other lengths and chunk
sizes. Everything else is the models' own code. With checkpointing, rotary embeddings and masks are kept in closures,
where the count of what autograd saves misses them. Resident memory is that of a process whose allocator keeps nothing.
"""


def memory_table(items: list[MemoryItem]) -> str:
    """What one GPU holds, item by item."""
    rows = [[item.part.value, item.when.value, f"{item.bytes / GB:.2f}"] for item in items]
    return table(("GB a GPU, predicted", "while", "GB"), [*rows, ["**peak**", "", f"**{peak_bytes(items) / GB:.1f}**"]])


def checks() -> list[Check]:
    """Everything that can be checked here."""
    jobs: list[Callable[[], list[Check]]] = [
        memory_checks.kept_checks,
        memory_checks.resident_body_checks,
        lambda: [memory_checks.state_check(ddp=ddp) for ddp in (False, True)],
        *(partial(_peaks, *shape) for shape in ((512, 512), (2048, 1024))),
    ]
    return [check for job in track(jobs, "checks") for check in job()]


def _peaks(num_tokens: int, chunk_tokens: int) -> list[Check]:
    return [measure(num_tokens, chunk_tokens) for measure in (memory_checks.alive_check, memory_checks.resident_check)]


def check_table(found: list[Check]) -> str:
    """One line for each kind of number, its cases side by side."""
    kinds: dict[str, list[Check]] = {}
    for check in found:
        kinds.setdefault(check.what, []).append(check)
    rows = [
        [
            what,
            " · ".join(check.case for check in members),
            " · ".join(f"{check.predicted / 2**20:.3g}" for check in members),
            " · ".join(f"{check.measured / 2**20:.3g}" for check in members),
            " · ".join(f"{check.ratio:.2f}" for check in members),
        ]
        for what, members in kinds.items()
    ]
    return table(("MiB, checked here", "of", "predicted", "counted or measured", "predicted / measured"), rows)


def _assumptions(pair: str, step: StepShape) -> str:
    student, teacher = pair.split(" ◄ ")
    return (
        f"**Predictions, no GPU was used.** {teacher} teaches {student}: {step.num_prompts} prompts × "
        f"{step.num_samples} of {step.prompt_tokens} tokens, responses of {step.response_tokens:,} student and "
        f"{step.teacher_response_tokens:,} teacher tokens, {step.num_gpus} GPUs, student {step.student}, teacher "
        f"{step.teacher}, checkpointing {'on' if step.checkpointing else 'off'}, fp32 weights, bf16 products, an "
        f"engine on each GPU, micro-batches of {step.micro_batch}."
    )


def main(
    pair: str = "Gemma-2-2B-it ◄ Qwen2.5-7B-Instruct",
    check: bool = True,
    threads: int = 1,
    write: bool = False,
) -> None:
    """Print the tables; `--write true` puts them into docs/performance.md.

    Args:
        pair: student ◄ teacher, names in benchmarks.architectures.published_configs.
        check: compare with what can be measured here (some minutes).
        threads: of torch, for the checks.
        write: publish the tables.
    """
    torch.set_num_threads(threads)
    step = StepShape()
    body = [_assumptions(pair, step), memory_table(MeasuredPair(pair).items(step)), LEFT_OUT.strip()]
    if check:
        body += [check_table(checks()), CALIBRATED.strip()]
    publish("scaling", "python -m benchmarks.scaling", "\n\n".join(body), write=write)


if __name__ == "__main__":
    jsonargparse.auto_cli(main)
