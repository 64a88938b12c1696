"""The embedded pair in a module and a trainer, small enough for a test."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L

from callbacks import RolloutCallback
from simct_pl import CommonBoundaryAligner, DistillModule, SimCTLoss
from simct_pl.rollout.engine import SamplingParams, sample_seed
from simct_pl.rollout.hf import HFEngine
from simct_pl.tasks.datamodule import ArithmeticDataModule
from simct_pl.training.graded_batch import GradedBatch
from simct_pl.training.optim import OptimizerConfig
from simct_pl.types import Prompt, Rollout

ASSETS = Path(__file__).resolve().parent.parent / "simct_pl/assets/quickstart"


def unloaded_module(kind: type[DistillModule] = DistillModule, **overrides: Any) -> DistillModule:
    """The quickstart's module, before its weights load."""
    arguments: dict[str, Any] = {
        "student": str(ASSETS / "student"),
        "teacher": str(ASSETS / "teacher"),
        "objective": SimCTLoss("sum_logprob", "marginal"),
        "aligner": CommonBoundaryAligner(),
        "optimizer": OptimizerConfig(lr=1e-4),
        "teacher_dtype": "float32",
    }
    return kind(**{**arguments, **overrides})


def distill_module(**overrides: Any) -> DistillModule:
    """The quickstart's module, with its weights loaded."""
    module = unloaded_module(**overrides)
    module.configure_model()
    return module


def regraded(graded: GradedBatch, **values: Any) -> GradedBatch:
    """Of a module with one teacher: with other values of its AlignedBatch."""
    [grading] = graded.gradings
    return GradedBatch([replace(grading, aligned=replace(grading.aligned, **values))])


def sampled(module: DistillModule, num: int = 6, max_tokens: int = 24) -> list[Rollout]:
    """Rollouts of the module's student, some cut and of unequal lengths."""
    engine = HFEngine()
    engine.refresh(module.student, 0)
    questions = ["1+2+3?", "10+20+30?", "13+25+7?", "4+40+8?", "9+9+9?", "31+2+18?"][:num]
    prompts = [Prompt(i, ({"role": "user", "content": q},), "1+2= 3, 3+3= 6, total 6") for i, q in enumerate(questions)]
    prompts_ids = [module.pair.student.render_prompt(list(p.messages)) for p in prompts]
    seeds = [sample_seed(0, 0, i, 0) for i in range(num)]
    stops = module.pair.student.stop_ids
    generations = []
    for i in range(num):  # one limit each, so that lengths differ
        limit = SamplingParams(temperature=1.3, max_tokens=max_tokens - 3 * i)
        generations += engine.generate([prompts_ids[i]], [seeds[i]], limit, stops)
    return [
        Rollout(p, 0, ids, g.response_ids, g.logprobs, g.finish_reason, 0, seed)
        for p, ids, g, seed in zip(prompts, prompts_ids, generations, seeds, strict=True)
    ]


def trainer(folder: Path, *callbacks: L.Callback, **overrides: Any) -> L.Trainer:
    """A silent CPU trainer."""
    arguments: dict[str, Any] = {
        "accelerator": "cpu",
        "max_steps": 2,
        "default_root_dir": folder,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "inference_mode": False,
        "callbacks": [RolloutCallback(SamplingParams(max_tokens=30)), *callbacks],
    }
    return L.Trainer(**{**arguments, **overrides})


def data(**overrides: Any) -> ArithmeticDataModule:
    arguments = {"batch_size": 4, "num_train_batches": 8, "num_val_prompts": 4, "val_batch_size": 4}
    return ArithmeticDataModule(**{**arguments, **overrides})
