"""VLLMEngine on two ranks: fits of a tiny student, and what else may happen to an engine; each rank leaves a file.

python -m tests.distributed.vllm_runs FOLDER STUDENT
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import Strategy

from callbacks import PolicyMismatch, RolloutCallback
from simct_pl.models.sharding import ShardedStrategy, Sharding, full_parameters
from simct_pl.rollout.engine import SamplingParams
from simct_pl.rollout.hf import HFEngine
from simct_pl.rollout.vllm import VLLMEngine
from simct_pl.tasks.arithmetic import TotalGrader
from simct_pl.training.module import DistillModule
from simct_pl.training.optim import OptimizerConfig
from simct_pl.types import PromptBatch
from tests.distributed.runs import Data, main
from tests.rollout.read_back import read_back
from tests.rollout.tiny_student import QUESTIONS, STOP
from tests.tiny import trainer, unloaded_module

GLOBAL_BATCH, NUM_STEPS = 8, 2
GREEDY = SamplingParams(temperature=0.0, max_tokens=12)


class Seen(L.Callback):
    """Response ids of each step by prompt, and the policy metrics and losses."""

    def __init__(self) -> None:
        self.trace: dict[str, Any] = {"responses": [], "held_out": {}, "metrics": []}

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: PromptBatch, batch_idx: int
    ) -> None:
        assert batch.rollouts is not None
        self.trace["responses"].append({rollout.prompt.index: rollout.response_ids for rollout in batch.rollouts})
        names = ("policy/lag", "policy/mismatch_p99", "loss/train")
        self.trace["metrics"].append({name: float(trainer.callback_metrics[name]) for name in names})

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: PromptBatch, batch_idx: int, _: int = 0
    ) -> None:
        assert batch.rollouts is not None
        self.trace["held_out"] |= {rollout.prompt.index: rollout.response_ids for rollout in batch.rollouts}


def engine(**overrides: Any) -> VLLMEngine:
    return VLLMEngine(**{"dtype": "float32", "kv_cache_gib": 0.125, "enforce_eager": True, **overrides})


def fit(
    folder: Path, student: str, own: VLLMEngine, strategy: Strategy | str = "auto", num_ranks: int = 1
) -> tuple[DistillModule, Seen]:
    """A fit at a rate at which a step shows; all held-out prompts are the first rank's."""
    seen, sharding = Seen(), Sharding() if isinstance(strategy, ShardedStrategy) else None
    module = unloaded_module(
        student=student, sharding=sharding, grader=TotalGrader(), optimizer=OptimizerConfig(lr=3e-3, warmup_ratio=0.0)
    )
    run = trainer(
        folder,
        callbacks=[RolloutCallback(SamplingParams(max_tokens=24), engine=own), PolicyMismatch(), seen],
        max_steps=NUM_STEPS,
        strategy=strategy,
        devices=num_ranks,
    )
    data = Data(batch_size=GLOBAL_BATCH // num_ranks, num_train_batches=NUM_STEPS, num_val_prompts=5)
    run.fit(module, datamodule=data)
    return module, seen


def weights_apart(own: VLLMEngine, module: DistillModule) -> list[str]:
    """Names of the parameters that are not, bit for bit, what this rank's engine holds; collective."""
    assert own._llm is not None
    (found,) = own._llm.apply_model(read_back)
    whole = dict(full_parameters(module.student))
    whole["lm_head.weight"] = whole["model.embed_tokens.weight"]
    assert found.keys() == whole.keys()
    return [name for name, weight in whole.items() if not torch.equal(found[name], weight)]


def greedy_pairs(own: VLLMEngine | HFEngine, module: DistillModule, questions: list[str]) -> list[list[int]]:
    prompts = [module.pair.student.render_prompt([{"role": "user", "content": question}]) for question in questions]
    return [g.response_ids for g in own.generate(prompts, [0] * len(prompts), GREEDY, (STOP,))]


def by_transformers(module: DistillModule, questions: list[str]) -> list[list[int]]:
    reference = HFEngine()
    reference.refresh(module.student, 0)
    return greedy_pairs(reference, module, questions)


def on_two_ranks(folder: Path, student: str) -> None:
    found: dict[str, Any] = {}
    own = engine()
    module, seen = fit(folder, student, own, ShardedStrategy(), 2)
    found["fsdp2"] = seen.trace
    own.refresh(module.student, 7)
    found["apart"] = weights_apart(own, module)
    questions = QUESTIONS[dist.get_rank() :: 2]
    found["greedy"] = greedy_pairs(own, module, questions), by_transformers(module, questions)
    torch.save(found, folder / f"rank{dist.get_rank()}.pt")


if __name__ == "__main__":
    sys.exit(main(partial(on_two_ranks, Path(sys.argv[1]), sys.argv[2])))
