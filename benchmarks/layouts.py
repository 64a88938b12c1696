"""Who holds what on 8 GPUs: the tables of docs/scaling.md.

Each line is a rehearsal of one rank's step at full size (simct_pl/rehearsal), with an engine and its KV cache added; no
GPU was used.
"""

from __future__ import annotations

from dataclasses import replace

import jsonargparse
import torch

from benchmarks.architectures import published_configs
from benchmarks.rehearse import micro_batch, unit_parts
from benchmarks.report import publish, table
from simct_pl.models.sharding import Sharding
from simct_pl.planning.memory import MemoryItem, Part, items_beside, peak_bytes, rehearsed_items
from simct_pl.planning.rehearsing import HOST, training_of
from simct_pl.planning.step import GPU_MEMORY, StepShape
from simct_pl.progress import follow
from simct_pl.rehearsal.ledger import Ledger
from simct_pl.rehearsal.models import ModelSource, cache_bytes, size_of
from simct_pl.rehearsal.pair import Distillation, rehearse_distillation
from simct_pl.training.optim import OptimizerConfig

GB = 1e9
# recipes/paper: each of a node's 8 GPUs trains and samples.
PAPER_PAIRS = (
    "Gemma-2-2B-it ◄ Qwen2.5-7B-Instruct",
    "Phi-4-mini-instruct ◄ Qwen2.5-7B-Instruct",
    "Gemma-2-2B-it ◄ Phi-4-mini-instruct",
)
# student ◄ teacher, and what they are trained with; AdamW's moments and master weights are fp32.
PAIRS = {
    **dict.fromkeys(PAPER_PAIRS, StepShape(num_prompts=64)),
    "Qwen2.5-7B-Instruct ◄ Qwen2.5-32B-Instruct": StepShape(num_prompts=256, micro_batch_tokens=8192),
}
DDP: dict[str, object] = {"student": "replicated", "buckets": True, "param_dtype": torch.float32, "autocast": True}
SHARED: dict[str, object] = {"teacher": "sharded"}
LAYOUTS: dict[str, dict[str, dict[str, object]]] = {
    **{name: {"FSDP2, teacher whole": {}} for name in PAPER_PAIRS},
    PAPER_PAIRS[0]: {"DDP, teacher whole": DDP, "FSDP2, teacher whole": {}},
    "Qwen2.5-7B-Instruct ◄ Qwen2.5-32B-Instruct": {"FSDP2, teacher sharded": SHARED},
}
HEADERS = ("student", "teacher", "engine", "rest", "peak", "fits")
STUDENT = (Part.WEIGHTS, Part.GRADIENTS, Part.MOMENTS, Part.BUCKETS)
BESIDE = (*STUDENT, Part.TEACHER_WEIGHTS, Part.ENGINE_WEIGHTS, Part.ENGINE_CACHE)


class RehearsedPair:
    """student ◄ teacher by their published sizes."""

    def __init__(self, pair: str) -> None:
        configs = published_configs()
        self.student, self.teacher = (ModelSource(configs[name]) for name in pair.split(" ◄ "))

    def items(self, step: StepShape) -> list[MemoryItem]:
        """Of one GPU."""
        cache = 0 if step.engine == "server" else cache_bytes(self.student, step.engine_dtype, step.student_length)
        return rehearsed_items(self.ledger(step), step) + items_beside(size_of(self.student), cache, step)

    def ledger(self, step: StepShape) -> Ledger:
        """Of one rank's step under the default objective."""
        sharding = None
        if step.student == "fsdp":
            sharding = Sharding(step.num_replicas, "bfloat16", shard_teacher=step.teacher == "sharded")
        vocabs = self.student.config.vocab_size, self.teacher.config.vocab_size
        rows, tables, objective = unit_parts(step.micro_batch * step.response_tokens, *vocabs)
        distillation = Distillation(
            self.teacher,
            objective,
            micro_batch(rows, tables, step.micro_batch),
            chunk_tokens=step.chunk_tokens,
            teacher_batch_tokens=step.teacher_batch_tokens,
            strip_bytes=step.strip_bytes,
        )
        return rehearse_distillation(training_of(self.student, step, sharding, OptimizerConfig()), distillation, HOST)


def layout_table(pair: RehearsedPair, base: StepShape, layouts: dict[str, dict[str, object]], memory: float) -> str:
    """A line a layout."""
    rows = []
    for name in follow([*layouts], "layouts"):
        step = replace(base, **layouts[name])  # type: ignore[arg-type]
        rows.append([name, *cells(pair.items(step), memory)])
    return table(("8 GPUs, rehearsed", *HEADERS), rows)


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
        title = f"{name}, {step.num_prompts} responses of {step.response_tokens:,} tokens a step; GB a GPU, rehearsed"
        parts += [title, layout_table(RehearsedPair(name), step, LAYOUTS[name], memory)]
    publish("layouts", "python -m benchmarks.layouts", "\n\n".join(parts), write=write, page="scaling.md")


if __name__ == "__main__":
    jsonargparse.auto_cli(main)
