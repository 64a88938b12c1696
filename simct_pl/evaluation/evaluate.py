"""evaluate(): a model folder and benchmarks in, results out; no training recipe needed."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from simct_pl.errors import RecipeError
from simct_pl.evaluation.benchmark import Benchmark
from simct_pl.evaluation.report import log_results, print_results, write_summary
from simct_pl.evaluation.runner import Evaluation, Protocol
from simct_pl.evaluation.scores import BenchmarkResult, summarise
from simct_pl.files.lock import sole_writer
from simct_pl.models.loading import DtypeName
from simct_pl.rollout.engine import RolloutEngine
from simct_pl.rollout.inference_model import InferenceModel
from simct_pl.tracking.logger import TRACKING_URI, RunLogger


def evaluate(
    model: str,
    benchmarks: list[Benchmark],
    output: str | None = None,
    engine: RolloutEngine | None = None,
    protocol: Protocol = Protocol(),  # noqa: B008 - frozen
    dtype: DtypeName = "bfloat16",
    trust_remote_code: bool = False,
    tracking_uri: str | None = TRACKING_URI,
    template: dict[str, Any] | None = None,
) -> list[BenchmarkResult]:
    """Score a model.

    Args:
        model: a model folder or hub name; a student, a teacher, or any other.
        benchmarks: what it is scored on.
        output: folder of the results, by default runs/evaluation/<model>; one that has some already is gone on with.
        engine: who generates; HFEngine by default, on the GPU where there is one.
        protocol: sampling, seeds, limits.
        dtype: of the weights.
        trust_remote_code: whether the model's own Python code may run.
        template: arguments of the model's chat template, {enable_thinking: false} say.
        tracking_uri: of MLflow; null: results are not sent there.

    Raises:
        SimctError: before any weights load, if a model, a data set or the sandbox is not as it should be.
    """
    names = [benchmark.name for benchmark in benchmarks]
    if not names or len(set(names)) != len(names):
        raise RecipeError(f"benchmarks are {names}; expected at least one, and none twice.")
    asked = InferenceModel.check(model, engine, dtype, trust_remote_code, template)
    folder = Path(output or Path("runs/evaluation") / Path(asked.path).name).expanduser()
    evaluation = Evaluation(asked.identity, asked.tokenizer, asked.context, asked.engine, protocol, folder)
    for benchmark in benchmarks:
        evaluation.check(benchmark)
    with sole_writer(folder, "evaluate"):
        with asked.loaded():
            results = [summarise(benchmark.name, evaluation.run(benchmark)) for benchmark in benchmarks]
        write_summary(folder, results)
    print_results(results, f"{asked.path}, {protocol.num_seeds} seeds, temperature {protocol.temperature}")
    if tracking_uri is not None:
        logger = RunLogger(str(folder / "tracking"), tracking_uri, run_name=f"evaluate {Path(asked.path).name}")
        log_results(
            logger,
            results,
            folder,
            json.dumps({"model": asked.path, "dtype": dtype, "template": template, **asdict(protocol)}),
        )
    return results
