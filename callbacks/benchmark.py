"""BenchmarkCallback: scores the student on benchmarks, every so many steps of a fit, and in the test stage.

It reads weights and draws from its own seeds, so that a run trains the same with it and without. `eval/<benchmark>/…`
goes to the logger; callbacks.Checkpoint can keep the checkpoint that was best by one of them.
"""

from __future__ import annotations

import shutil
from itertools import chain
from pathlib import Path
from typing import Any

import lightning as L
from typing_extensions import override

from callbacks.distilled import distilled
from simct_pl.errors import RecipeError
from simct_pl.evaluation.benchmark import Benchmark
from simct_pl.evaluation.report import print_results, write_summary
from simct_pl.evaluation.runner import BenchmarkProvider, Evaluation, Protocol
from simct_pl.evaluation.scores import BenchmarkResult, summarise
from simct_pl.models.ranks import objects_of_ranks
from simct_pl.rollout.engine import RolloutEngine, RolloutProvider, StudentSource
from simct_pl.training.module import DistillModule


class BenchmarkCallback(BenchmarkProvider):
    """Scores the student. Ranks share the problems.

    Args:
        benchmarks: what it is scored on; nothing of them may be trained on.
        every_n_steps: optimizer steps between two evaluations of a fit, the first before any step; null: none in a fit.
        protocol: in a fit; small, because the run waits for it. test_protocol: of `test`; by default the paper's.
        engine: who generates; by default the rollout callback's.
        folder: of the responses and grades; <default_root_dir>/benchmarks by default.

    Raises:
        RecipeError: for two benchmarks of one name, none, or every_n_steps below 1.
    """

    only_reports = True

    def __init__(
        self,
        benchmarks: list[Benchmark],
        every_n_steps: int | None = None,
        protocol: Protocol = Protocol(num_seeds=1, limit=64),  # noqa: B008 - frozen
        test_protocol: Protocol = Protocol(),  # noqa: B008 - frozen
        engine: RolloutEngine | None = None,
        folder: str | None = None,
    ) -> None:
        names = [benchmark.name for benchmark in benchmarks]
        if not names or len(set(names)) != len(names):
            raise RecipeError(f"benchmarks are {names}; expected at least one, and none twice.")
        if every_n_steps is not None and every_n_steps < 1:
            raise RecipeError(f"every_n_steps is {every_n_steps}; expected at least 1, or null.")
        self.benchmarks, self.every_n_steps = benchmarks, every_n_steps
        self.protocol, self.test_protocol = protocol, test_protocol
        self.engine, self.folder = engine, folder
        self.results: list[BenchmarkResult] = []
        self._scored_at: int | None = None
        self.evaluation: Evaluation | None = None  # of this fit or test; the problems are read once, when it is set up

    @override
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Read the problems and try the sandbox before any weights load."""
        if stage == "test" or (stage == "fit" and self.every_n_steps is not None):
            module = distilled(self, pl_module)
            if self.engine is not None:
                trusted = "student" in module.trust_remote_code
                source = StudentSource(module.student_path, module.student_context, trusted, trainer.world_size)
                self.engine.check(source)
            self.evaluation = self._evaluation(
                trainer, module, self.test_protocol if stage == "test" else self.protocol
            )
            self._scored_at = None
            for benchmark in self.benchmarks:
                self.evaluation.check(benchmark)

    @override
    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self.every_n_steps is not None and trainer.global_step == 0 and self._scored_at is None:
            self._log(trainer, pl_module, "step-00000000")

    @override
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if self.every_n_steps is not None and step % self.every_n_steps == 0 and step != self._scored_at:
            self._log(trainer, pl_module, f"step-{step:08d}")

    @override
    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._log(trainer, pl_module, "test")
        if trainer.is_global_zero:
            print_results(self.results, f"{distilled(self, pl_module).starts_from}, {self.test_protocol}")

    def _log(self, trainer: L.Trainer, pl_module: L.LightningModule, name: str) -> None:
        evaluation, module = self.evaluation, distilled(self, pl_module)
        assert evaluation is not None
        evaluation.folder = self._folder(trainer) / name
        if trainer.is_global_zero:  # responses of an earlier run's weights
            shutil.rmtree(evaluation.folder, ignore_errors=True)
        trainer.strategy.barrier()
        # Weights of another checkpoint may have been loaded for a test, at the same step.
        if name == "test" or evaluation.engine.policy_version != trainer.global_step:
            evaluation.engine.refresh(module.student, trainer.global_step)
        # All benchmarks first: ranks ask unequally often, and meet when everybody has finished.
        parts = [evaluation.run(benchmark) for benchmark in self.benchmarks]
        evaluation.engine.finish()
        self.results = []
        for benchmark, own in zip(self.benchmarks, parts, strict=True):
            items = chain.from_iterable(objects_of_ranks(own))
            self.results.append(summarise(benchmark.name, list(items)))
        self._scored_at = trainer.global_step  # it stays that when a step is skipped
        if trainer.is_global_zero:
            write_summary(evaluation.folder, self.results)
        metrics = {name: value for result in self.results for name, value in result.metrics().items()}
        # Lightning would log them again at every later step; it only keeps them, for Checkpoint's best_metric.
        pl_module.log_dict(metrics, logger=False)
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=trainer.global_step)

    def _folder(self, trainer: L.Trainer) -> Path:
        return Path(self.folder).expanduser() if self.folder else Path(trainer.default_root_dir) / "benchmarks"

    def _evaluation(self, trainer: L.Trainer, module: DistillModule, protocol: Protocol) -> Evaluation:
        return Evaluation(
            {"model": module.starts_from},
            module.pair.student,
            module.student_context,
            self.engine or _rollout_engine(trainer),
            protocol,
            self._folder(trainer),
            trainer.global_rank,
            trainer.world_size,
        )


def _rollout_engine(trainer: L.Trainer) -> RolloutEngine:
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    engines = [c.engine for c in callbacks if isinstance(c, RolloutProvider) and hasattr(c, "engine")]
    if not engines:
        raise RecipeError("BenchmarkCallback has no engine, and no rollout callback has one; set its engine.")
    engine: RolloutEngine = engines[0]
    return engine
