"""A whole training step of published models, at full size, on a GPU that is not there.

python -m benchmarks.rehearse --write true
"""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import torch

from benchmarks.architectures import published_configs
from benchmarks.synthetic import make_units
from simct_pl.losses.simct import SimCTLoss
from simct_pl.losses.token_conditional import TokenConditionalLoss
from simct_pl.models.sharding import Sharding
from simct_pl.rehearsal.models import ModelSource
from simct_pl.rehearsal.step import MicroBatch, StepParts, rehearse
from simct_pl.training.aligned_batch import AlignedBatch
from simct_pl.types import Rollout

PROMPT_TOKENS = 256


def step_parts(
    student: str, teacher: str, objective: str, responses: int, tokens: int, layers: int | None = None, **more: Any
) -> StepParts:
    configs = published_configs()
    sources = [ModelSource(configs[name]) for name in (student, teacher)]
    for source in sources:
        if layers:
            source.config.num_hidden_layers = layers
            if getattr(source.config, "layer_types", None):
                source.config.layer_types = source.config.layer_types[:layers]
    vocabs = [source.config.vocab_size for source in sources]
    tables, rows, labels, paths = make_units(responses * tokens, *vocabs)
    if objective == "TokenConditionalLoss":
        found = TokenConditionalLoss()
        found.use_labels(*labels)
        from dataclasses import replace

        rows = replace(rows, paths=paths)
    else:
        found = SimCTLoss("sum_logprob", "marginal")
    micro = _micro_batch(rows, tables, responses)
    return StepParts(*sources, found, micro, **more)


def _micro_batch(rows: Any, tables: Any, responses: int) -> MicroBatch:
    lengths = [_shares(len(ids), responses) for ids in (rows.student_ids_N, rows.teacher_ids_M)]
    rollouts = [Rollout(None, 0, [1] * PROMPT_TOKENS, [2] * n, [0.0] * n, "length", 0, 0) for n in lengths[0]]
    alignments = [SimpleNamespace(teacher_ids_T=torch.full((n,), 2)) for n in lengths[1]]
    return MicroBatch(rollouts, AlignedBatch(alignments, [[1] * PROMPT_TOKENS] * responses, rows, 0.0), tables)


def _shares(number: int, parts: int) -> list[int]:
    each = number // parts
    return [each] * (parts - 1) + [number - each * (parts - 1)]


def run(
    student: str = "Gemma-2-2B-it",
    teacher: str = "Qwen2.5-7B-Instruct",
    objective: str = "TokenConditionalLoss",
    responses: int = 3,
    tokens: int = 4096,
    layers: int | None = None,
    ranks: int = 1,
    device: str = "cuda",
) -> dict[str, Any]:
    start = time.time()
    more = {"autocast": True} if ranks == 1 else {"sharding": Sharding(param_dtype="bfloat16"), "num_ranks": ranks}
    parts = step_parts(student, teacher, objective, responses, tokens, layers, **more)
    print("parts", time.time() - start)

    def started(name):
        print(f"{time.time() - start:6.1f} {name}", flush=True)

    ledger = rehearse(parts, device, started)
    print(f"{time.time() - start:6.1f} done")
    phases = {}
    for (phase, _), n in ledger.kernels.items():
        phases[phase] = phases.get(phase, 0) + n
    print(phases)
    print({k: round(v / 1e9, 2) for k, v in ledger.most_in.items()}, round(ledger.most / 1e9, 2))
    for w, n in ledger.waits.most_common(40):
        print("  wait", n, w.kind, w.place)
    for w, n in ledger.uploads.most_common(40):
        print("  upload", n, w)
    for w, n in ledger.kernels.most_common(70):
        print("  kernels", n, w)
    for (ph, w), n in ledger.operators.most_common(90):
        if ph == "loss":
            print("  ops", n, w)
    for w, n in ledger.at_most.most_common(16):
        print(f"  at peak {n / 1e9:.3f}", w)
    return {}


if __name__ == "__main__":
    pass
