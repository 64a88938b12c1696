"""VLLMEngine on two ranks: fits of a tiny student, and what else may happen to an engine; each rank leaves a file.

python -m tests.distributed.vllm_runs FOLDER STUDENT
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import Strategy
from torch.distributed.tensor.debug import CommDebugMode

from callbacks import PolicyMismatch, RolloutCallback
from simct_pl.errors import SimctError
from simct_pl.models.ranks import objects_of_ranks
from simct_pl.models.sharding import ShardedStrategy, Sharding, full_parameters
from simct_pl.rollout.engine import SamplingParams, StudentSource
from simct_pl.rollout.hf import HFEngine
from simct_pl.rollout.vllm import VLLMEngine
from simct_pl.rollout.vllm_weights import named_weights
from simct_pl.tasks.arithmetic import TotalGrader
from simct_pl.training.module import DistillModule
from simct_pl.training.optim import OptimizerConfig
from simct_pl.types import PromptBatch
from tests.distributed.runs import Data, main
from tests.rollout.read_back import read_back
from tests.rollout.tiny_student import CONTEXT, QUESTIONS, STOP
from tests.tiny import trainer, unloaded_module

GLOBAL_BATCH, NUM_STEPS = 8, 2


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
    folder: Path,
    student: str,
    own: VLLMEngine,
    strategy: Strategy | str = "auto",
    num_ranks: int = 1,
    sharding: Sharding | None = None,
) -> tuple[DistillModule, Seen]:
    """A fit at a rate at which a step shows; all held-out prompts are the first rank's."""
    seen = Seen()
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


def gathers(module: DistillModule) -> tuple[int, int, int]:
    """Parameters of the sharded student, their names, and how often ranks gather when all of them are sent."""
    with CommDebugMode() as communication, torch.no_grad():
        num_names = len(list(named_weights(module.student)))
    return len(list(module.student.parameters())), num_names, communication.get_total_counts()


def greedy_of(
    own: VLLMEngine | HFEngine, module: DistillModule, questions: list[str], max_tokens: int = 12
) -> list[list[int]]:
    prompts = [module.pair.student.render_prompt([{"role": "user", "content": question}]) for question in questions]
    sampling = SamplingParams(temperature=0.0, max_tokens=max_tokens)
    return [g.response_ids for g in own.generate(prompts, [0] * len(prompts), sampling, (STOP,))]


def by_transformers(module: DistillModule, questions: list[str]) -> list[list[int]]:
    reference = HFEngine()
    reference.refresh(module.student, 0)
    return greedy_of(reference, module, questions)


def refused(work: Callable[[], object]) -> tuple[str, str]:
    """The error of some work that must fail: its class, and what it says."""
    try:
        work()
    except SimctError as error:
        return type(error).__name__, str(error)
    return "", ""


def unequal(own: VLLMEngine, module: DistillModule) -> list[list[list[int]]]:
    """The first rank asks three times, the second has one batch without prompts; then one with a prompt that it cuts at
    once. Each rank's answers, in turn.
    """
    first, answers = dist.get_rank() == 0, []
    own.refresh(module.student, 8)
    for part in (QUESTIONS[:1], QUESTIONS[1:3], QUESTIONS[3:]) if first else ([],):
        answers.append(greedy_of(own, module, part))
    own.finish()
    answers.append(greedy_of(own, module, QUESTIONS[:3]) if first else greedy_of(own, module, QUESTIONS[:1], 1))
    own.finish()
    return answers


def failures(own: VLLMEngine, module: DistillModule) -> dict[str, tuple[str, str]]:
    """What each rank hears when the second one fails; everything works again afterwards."""
    second, llm, found = dist.get_rank() == 1, own._llm, {}
    assert llm is not None

    def fail(*args: Any, **kwargs: Any) -> None:
        next(kwargs.get("kwargs", {}).get("weights_iterator", iter([0])))  # one of the weights has arrived
        raise RuntimeError("device lost\nat line 7")

    def ask() -> object:
        return greedy_of(own, module, QUESTIONS[:2])

    with pytest.MonkeyPatch.context() as patch:
        if second:
            patch.setattr(llm, "generate", fail)
        found["generate"] = refused(ask)
    with pytest.MonkeyPatch.context() as patch:
        if second:
            patch.setattr(llm, "collective_rpc", fail)
        found["refresh"] = refused(lambda: own.refresh(module.student, 9))
    found["after a refresh that failed"] = refused(ask)
    own.refresh(module.student, 9)
    long = QUESTIONS[0] * (40 if second else 1)
    found["prompt"] = refused(lambda: greedy_of(own, module, [long]))
    found["memory"] = refused(lambda: started(module, engine(kv_cache_gib=2.0**20)))
    found["folder"] = refused(lambda: started(module, engine(), "no such folder"))
    return found


def started(module: DistillModule, own: VLLMEngine, path: str = "") -> None:
    own.check(StudentSource(path or module.student_path, CONTEXT, False, 2))
    own.refresh(module.student, 0)


def closed(own: VLLMEngine, module: DistillModule) -> dict[str, Any]:
    """What is left of the trainer's process when an engine has been closed and started again."""
    before = dict(os.environ), torch.set_num_threads, torch.get_num_threads()
    own.close()
    alive = dist.is_initialized() and objects_of_ranks(dist.get_rank()) == [0, 1]
    with pytest.MonkeyPatch.context() as patch:  # as SLURM starts ranks: nobody says which one this is
        for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
            patch.delenv(name, raising=False)
        own.refresh(module.student, 10)
    return {
        "group": alive and objects_of_ranks(dist.get_rank()) == [0, 1],
        "process": before == (dict(os.environ), torch.set_num_threads, torch.get_num_threads()),
        "greedy": greedy_of(own, module, QUESTIONS),
    }


def through_gloo() -> None:
    """Have vLLM's CPU ranks exchange tensors by gloo. Shared memory, which they take where they agree on its name, has
    one name for all runs of a host, and outlives a run that is killed.
    """
    from vllm.distributed.device_communicators.cpu_communicator import _CPUSHMDistributed

    _CPUSHMDistributed.make_group_name = staticmethod(lambda communicator: f"rank {communicator.rank}")


def on_two_ranks(folder: Path, student: str) -> None:
    found: dict[str, Any] = {}
    own = engine()
    module, seen = fit(folder, student, own, ShardedStrategy(), 2, Sharding())
    found["fsdp2"] = seen.trace
    own.refresh(module.student, 7)
    found["gathers"] = gathers(module)
    found["apart"] = weights_apart(own, module)
    found["transformers"] = by_transformers(module, QUESTIONS)
    found["greedy"] = greedy_of(own, module, QUESTIONS)
    found["unequal"] = unequal(own, module)
    found["failures"] = failures(own, module)
    found["closed"] = closed(own, module)
    found["ddp"] = fit(folder, student, own, "ddp", 2)[1].trace
    own.close()
    through_gloo()
    shared = engine(tensor_parallel_size=2)
    module, seen = fit(folder, student, shared, ShardedStrategy(), 2, Sharding(replicate=2))
    found["shared"] = seen.trace
    shared.refresh(module.student, 7)
    found["shared transformers"] = by_transformers(module, QUESTIONS)
    found["shared greedy"] = greedy_of(shared, module, QUESTIONS[dist.get_rank() :: 2])
    found["shared unequal"] = unequal(shared, module)
    torch.save(found, folder / f"rank{dist.get_rank()}.pt")


if __name__ == "__main__":
    sys.exit(main(partial(on_two_ranks, Path(sys.argv[1]), sys.argv[2])))
