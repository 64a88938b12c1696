"""Who holds what on 8, 16 and 64 GPUs, on paper: the tables of docs/scaling.md.

All figures are predictions of simct_pl/planning; no GPU was used. scaling.py compares them with what can be counted and
measured on a CPU.
"""

from __future__ import annotations

from dataclasses import replace

import jsonargparse

from benchmarks.architectures import published_configs
from benchmarks.report import publish, table
from simct_pl.planning.measure import ModelSource
from simct_pl.planning.memory import MemoryItem, PairBytes, Part, distillation_items, peak_bytes
from simct_pl.planning.step import GPU_MEMORY, StepShape

GB = 1e9
# student ◄ teacher, and what they are trained with; AdamW's moments and master weights are fp32.
PAIRS = {
    "Gemma-2-2B-it ◄ Qwen2.5-7B-Instruct": StepShape(num_prompts=64),
    "Qwen2.5-7B-Instruct ◄ Qwen2.5-32B-Instruct": StepShape(num_prompts=256, micro_batch_tokens=8192),
}
DDP = {"student": "replicated", "buckets": True}
LAYOUTS: dict[int, dict[str, dict[str, object]]] = {
    8: {
        "DDP, teacher whole": DDP,
        "FSDP2, teacher whole": {},
        "FSDP2, teacher sharded": {"teacher": "sharded"},
    },
    16: {
        "FSDP2 over 16": {"teacher": "sharded"},
        "HSDP 2 × 8": {"teacher": "sharded", "num_replicas": 2},
    },
    64: {
        "FSDP2 over 64": {"teacher": "sharded"},
        "HSDP 8 × 8": {"teacher": "sharded", "num_replicas": 8},
    },
}
# recipes/paper: each of a node's 8 GPUs trains and samples.
PAPER_PAIRS = (
    "Gemma-2-2B-it ◄ Qwen2.5-7B-Instruct",
    "Phi-4-mini-instruct ◄ Qwen2.5-7B-Instruct",
    "Gemma-2-2B-it ◄ Phi-4-mini-instruct",
)
PAPER_STEP = StepShape(num_prompts=64)
HEADERS = ("student", "teacher", "engine", "rest", "peak", "fits")
STUDENT = (Part.WEIGHTS, Part.GRADIENTS, Part.MOMENTS, Part.BUCKETS)
BESIDE = (*STUDENT, Part.TEACHER_WEIGHTS, Part.ENGINE_WEIGHTS, Part.ENGINE_CACHE)


class MeasuredPair:
    """student ◄ teacher by their published sizes; each micro-batch is measured once."""

    def __init__(self, pair: str) -> None:
        configs = published_configs()
        self.student, self.teacher = (ModelSource(configs[name]) for name in pair.split(" ◄ "))
        self._found: dict[tuple[object, ...], PairBytes] = {}

    def items(self, step: StepShape) -> list[MemoryItem]:
        """Of one GPU."""
        lengths = step.prompt_tokens, step.response_tokens, step.teacher_response_tokens
        key = (*lengths, step.micro_batch, step.teacher_batch, step.checkpointing, step.engine == "server")
        if key not in self._found:
            self._found[key] = PairBytes.measure(self.student, self.teacher, step)
        return distillation_items(self._found[key], step)


def layout_table(pair: MeasuredPair, base: StepShape, memory: float) -> str:
    """A line a layout."""
    rows = []
    for num_gpus, layouts in LAYOUTS.items():
        for name, changes in layouts.items():
            step = replace(base, num_gpus=num_gpus, **changes)  # type: ignore[arg-type]
            rows.append([f"{num_gpus}: {name}", *cells(pair.items(step), memory)])
    return table(("GPUs: layout, predicted", *HEADERS), rows)


def paper_table(pairs: dict[str, MeasuredPair], memory: float) -> str:
    """A line for each pair of recipes/paper."""
    rows = [[name, *cells(pair.items(PAPER_STEP), memory)] for name, pair in pairs.items()]
    return table(("student ◄ teacher, predicted", *HEADERS), rows)


def cells(items: list[MemoryItem], memory: float) -> list[str]:
    """Of one GPU: GB of the three models, of what training adds at its most, and the peak."""
    held = {part: sum(item.bytes for item in items if item.part is part) / GB for part in Part}
    beside = peak_bytes([item for item in items if item.part not in BESIDE]) / GB
    peak = peak_bytes(items)
    return [
        f"{sum(held[part] for part in STUDENT):.1f}",
        f"{held[Part.TEACHER_WEIGHTS]:.1f}",
        f"{held[Part.ENGINE_WEIGHTS]:.1f} + {held[Part.ENGINE_CACHE]:.1f}",
        f"{beside:.1f}",
        f"{peak / GB:.1f}",
        "yes" if peak <= memory else "no",
    ]


def main(gpu: str = "h100", write: bool = False) -> None:
    """Print the tables; `--write true` puts them into docs/scaling.md.

    Args:
        gpu: a name in simct_pl.planning.step.GPU_MEMORY.
        write: publish the tables.
    """
    memory, parts = GPU_MEMORY[gpu], []
    for name, step in PAIRS.items():
        title = f"{name}, {step.num_prompts} responses of {step.response_tokens:,} tokens a step; GB a GPU, predicted"
        parts += [title, layout_table(MeasuredPair(name), step, memory)]
    parts.append("The paper's recipes: 8 GPUs, FSDP2, teacher whole, an engine on each; GB a GPU, predicted")
    parts.append(paper_table({name: MeasuredPair(name) for name in PAPER_PAIRS}, memory))
    publish("layouts", "python -m benchmarks.layouts", "\n\n".join(parts), write=write, page="scaling.md")


if __name__ == "__main__":
    jsonargparse.auto_cli(main)
