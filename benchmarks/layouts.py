"""Who holds what on 8, 16 and 64 GPUs, and what a step takes there, on paper: the tables of docs/scaling.md.

All figures are predictions of simct_pl/planning/cost_model.py; no GPU was used. scaling.py compares that model with
what can be counted and measured on a CPU.
"""

from __future__ import annotations

from dataclasses import replace

import jsonargparse

from benchmarks.architectures import published_configs
from benchmarks.report import table
from simct_pl.planning.cost_inputs import HardwareShape, StepShape
from simct_pl.planning.cost_model import CostModel
from simct_pl.planning.shapes import ModelShape

GB = 1e9
# student ◄ teacher, and what they are trained with; AdamW's moments and master weights are fp32.
PAIRS = {
    "Gemma-2-2B-it ◄ Qwen2.5-7B-Instruct": StepShape(num_prompts=64),
    "Qwen2.5-7B-Instruct ◄ Qwen2.5-32B-Instruct": StepShape(num_prompts=256, micro_batch_tokens=8192),
}
LAYOUTS: dict[int, dict[str, dict[str, object]]] = {
    8: {
        "DDP, teacher whole": {"student": "replicated"},
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

# recipes/paper: 4 GPUs of a node train, the other 4 sample.
PAPER_PAIRS = (
    "Gemma-2-2B-it ◄ Qwen2.5-7B-Instruct",
    "Phi-4-mini-instruct ◄ Qwen2.5-7B-Instruct",
    "Gemma-2-2B-it ◄ Phi-4-mini-instruct",
)
PAPER_STEP = StepShape(num_prompts=64, num_gpus=4, engine="server")
HEADERS = ("student", "teacher", "engine", "rest", "peak", "fits", "s a step", "slowest")


def paper_table(shapes: dict[str, ModelShape], hardware: HardwareShape) -> str:
    """A line for each pair of recipes/paper."""
    rows = []
    for pair in PAPER_PAIRS:
        student, teacher = (shapes[name] for name in pair.split(" ◄ "))
        rows.append([pair, *_cells(CostModel(student, teacher, PAPER_STEP, hardware=hardware))])
    return table(("student ◄ teacher, predicted", *HEADERS), rows)


def layout_table(student: ModelShape, teacher: ModelShape, base: StepShape, hardware: HardwareShape) -> str:
    """A line a layout."""
    rows = []
    for num_gpus, layouts in LAYOUTS.items():
        for name, changes in layouts.items():
            step = replace(base, num_gpus=num_gpus, **changes)  # type: ignore[arg-type]
            rows.append([f"{num_gpus}: {name}", *_cells(CostModel(student, teacher, step, hardware=hardware))])
    return table(("GPUs: layout, predicted", *HEADERS), rows)


def _cells(cost: CostModel) -> list[str]:
    """Of one GPU: GB of the three models and of what training adds, the peak, seconds, and what takes most of them."""
    held = {item.name: item.bytes / GB for item in cost.memory()}
    student = sum(held.pop(name) for name in ("student weights", "gradients", "AdamW moments"))
    teacher, weights, cache = (held.pop(name) for name in ("teacher weights", "engine weights", "engine KV cache"))
    peak = cost.peak_bytes()
    seconds = {phase.name: phase.seconds for phase in cost.phases() if not phase.hidden}
    slowest = max(seconds, key=lambda name: seconds[name])
    total = sum(seconds.values())
    return [
        f"{student:.1f}",
        f"{teacher:.1f}",
        f"{weights:.1f} + {cache:.1f}",
        f"{sum(held.values()):.1f}",
        f"{peak / GB:.1f}",
        "yes" if peak <= cost.hardware.memory else "no",
        f"{total:.1f}",
        f"{slowest.split(' (')[0]}, {seconds[slowest] / total:.0%}",
    ]


def main(hardware: HardwareShape = HardwareShape()) -> None:  # noqa: B008 - frozen
    """Print the tables of docs/scaling.md, and that of docs/recipes.md.

    Args:
        hardware: peaks of one GPU.
    """
    shapes = {name: ModelShape.from_config(config) for name, config in published_configs().items()}
    for pair, step in PAIRS.items():
        student, teacher = (shapes[name] for name in pair.split(" ◄ "))
        print(f"{pair}, {step.num_prompts} responses of {step.response_tokens:,} tokens a step; GB a GPU, predicted\n")
        print(layout_table(student, teacher, step, hardware), end="\n\n")
    print("The paper's recipes: 4 GPUs train, 4 more sample; GB a training GPU, predicted\n")
    print(paper_table(shapes, hardware))


if __name__ == "__main__":
    jsonargparse.auto_cli(main)
