"""The order of sleep, wake, refresh and training, recorded by a stand-in for vLLM; and every call that is made of vLLM,
those of GPUs too, held against the signatures of the installed package.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest

from callbacks import BenchmarkCallback, RolloutCallback
from simct_pl.evaluation.runner import Protocol
from simct_pl.rollout.engine import SamplingParams, StudentSource
from simct_pl.rollout.vllm import VLLMEngine
from simct_pl.rollout.vllm_client import VLLMClient
from simct_pl.tasks.benchmark import ArithmeticBenchmark
from tests.tiny import ASSETS, data, distill_module, trainer

pytestmark = pytest.mark.vllm
STOP = 271
WAKING = ["empty cache", "wake weights", "weights", "wake kv_cache"]


class FakeLLM:
    """Records what is asked of vLLM; every response is a stop."""

    llm_engine = SimpleNamespace(model_config=SimpleNamespace(max_model_len=128))

    def __init__(self) -> None:
        self.events: list[str] = []
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        self.version = ""

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls.append((name, args, kwargs))
            return getattr(self, f"do_{name}")(*args, **kwargs)

        return call

    def do_collective_rpc(self, method: str, kwargs: dict[str, Any]) -> None:
        self.num_weights = len(list(kwargs["weights_iterator"]))
        self.events.append("weights")

    def do_wake_up(self, tags: list[str]) -> None:
        self.events.append(f"wake {' '.join(tags)}")

    def do_sleep(self, level: int) -> None:
        self.events.append(f"sleep {level}")

    def do_reset_prefix_cache(self) -> bool:
        return True

    def do_update_weight_version(self, version: str) -> None:
        self.version = version

    def do_generate(self, prompts: list[Any], requests: list[Any], use_tqdm: bool) -> list[Any]:
        self.events.append("generate")
        output = SimpleNamespace(
            token_ids=[STOP],
            logprobs=[{STOP: SimpleNamespace(logprob=-1.0)}],
            finish_reason="stop",
            weight_versions=[SimpleNamespace(version=self.version)],
        )
        return [SimpleNamespace(outputs=[output]) for _ in prompts]


class Training(L.Callback):
    """Writes down when the models of the trainer are at work."""

    def __init__(self, events: list[str]) -> None:
        self.events = events

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.events.clear()  # Lightning empties the cache too

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: Any, optimizer: Any) -> None:
        self.events.append("train")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.events.append("validated")


@pytest.fixture
def llm(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeLLM]:
    fake = FakeLLM()
    monkeypatch.setattr("torch.cuda.empty_cache", lambda: fake.events.append("empty cache"))
    yield fake
    from vllm import LLM

    for name, args, kwargs in fake.calls:
        inspect.signature(getattr(LLM, name)).bind(fake, *args, **kwargs)


def engine_with(llm: FakeLLM, **values: Any) -> VLLMEngine:
    engine = VLLMEngine(**values)
    engine._llm = llm  # type: ignore[assignment]
    engine.check = lambda student: None  # type: ignore[method-assign] - there is no GPU
    return engine


def fit(engine: VLLMEngine, folder: Path, llm: FakeLLM, *callbacks: L.Callback) -> list[str]:
    """What happened in two steps with validation, of two batches, after the second."""
    rollouts = RolloutCallback(SamplingParams(max_tokens=8), engine=engine)
    run = trainer(folder, callbacks=[rollouts, *callbacks, Training(llm.events)], max_steps=2, val_check_interval=2)
    run.fit(distill_module(), datamodule=data(val_batch_size=2))
    return llm.events


def test_training_and_the_engine_never_hold_their_memory_together(llm: FakeLLM, tmp_path: Path) -> None:
    assert fit(engine_with(llm, sleep=True), tmp_path, llm) == [
        *("weights", "generate", "sleep 2", "train"),
        *(*WAKING, "generate", "sleep 2", "train"),
        *(*WAKING, "generate", "generate", "sleep 2", "validated"),
    ]
    assert llm.num_weights == len(list(distill_module().student.named_parameters(remove_duplicate=False)))


def test_an_engine_that_stays_awake_gets_the_weights_once_a_step(llm: FakeLLM, tmp_path: Path) -> None:
    assert fit(engine_with(llm), tmp_path, llm) == [
        *("weights", "generate", "train"),
        *("weights", "generate", "train"),
        *("weights", "generate", "generate", "validated"),
    ]


def test_benchmarks_are_answered_by_one_waking(llm: FakeLLM, tmp_path: Path) -> None:
    both = [ArithmeticBenchmark(num_problems=2, name=name) for name in ("arithmetic", "other_sums")]
    folder = str(tmp_path / "scores")
    benchmarks = BenchmarkCallback(both, 2, Protocol(max_tokens=8, num_seeds=1), folder=folder)
    events = fit(engine_with(llm, sleep=True), tmp_path, llm, benchmarks)
    # Benchmarks come before the first step, whose prompts have been answered, and after the second; then validation.
    answered = [*WAKING, "generate", "generate", "sleep 2"]
    assert [events[i : i + len(answered)] == answered for i in range(len(events))].count(True) == 3
    assert events.count("sleep 2") == 5


def test_what_vllm_is_started_with_are_arguments_of_its_own() -> None:
    from vllm import LLM
    from vllm.engine.arg_utils import EngineArgs

    engine = VLLMEngine(sleep=True, tensor_parallel_size=2, kv_cache_gib=1.0, max_model_len=64)
    arguments = engine._arguments(StudentSource(str(ASSETS / "student"), 128, False, 2))
    named = set(inspect.signature(LLM.__init__).parameters) | {field.name for field in fields(EngineArgs)}
    assert arguments.keys() <= named


def test_workers_know_what_is_asked_of_them() -> None:
    """Calls that cross vLLM by name, and tags that it takes as they are."""
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner
    from vllm.v1.worker.gpu_worker import Worker

    inspect.signature(GPUModelRunner.reload_weights).bind(None, weights_iterator=iter(()))
    inspect.signature(GPUModelRunner.reload_weights).bind(None, weights_path="folder")
    inspect.signature(Worker.sleep).bind(None, level=2)
    inspect.signature(Worker.wake_up).bind(None, tags=["weights"])
    source = inspect.getsource(Worker)
    assert '"weights"' in source
    assert '"kv_cache"' in source


def test_the_transfer_by_nccl_is_as_vllm_has_it() -> None:
    from vllm.distributed.weight_transfer.base import ParamMeta, VLLMWeightSyncClient, WeightSource
    from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo, NCCLTrainerWeightTransferEngine

    from simct_pl.rollout.vllm_nccl import weight_source

    assert NCCLTrainerInitInfo("127.0.0.1", 1, 2, rank=0).world_size == 2
    inspect.signature(NCCLTrainerWeightTransferEngine.trainer_init).bind(None, client=None, source=None)
    for name in ("send_weights", "shutdown"):
        inspect.signature(getattr(NCCLTrainerWeightTransferEngine, name)).bind(None)
    student = distill_module().student
    source = weight_source(student)
    assert isinstance(source, WeightSource)
    assert [type(meta) for meta in source.metadata()] == [ParamMeta] * len(list(source))
    asked = [name for name in vars(VLLMWeightSyncClient) if not name.startswith("_")]
    assert len(asked) > 3
    for name in asked:
        theirs = inspect.signature(getattr(VLLMWeightSyncClient, name)).parameters
        assert theirs.keys() == inspect.signature(getattr(VLLMClient, name)).parameters.keys(), name
