"""VLLMServerEngine on a real server, started by `python -m simct_pl serve`: key, weights, samples, a fit, a restart."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import lightning as L
import pytest
import requests
import torch
from transformers import PreTrainedModel

from callbacks import PolicyMismatch, RolloutCallback
from simct_pl.errors import PromptDataError
from simct_pl.rollout.engine import SamplingParams, StudentSource
from simct_pl.rollout.hf import HFEngine
from simct_pl.rollout.vllm_server import VLLMServerEngine
from simct_pl.training.optim import OptimizerConfig
from simct_pl.training.teacher_server import TeacherServer
from simct_pl.types import PromptBatch
from tests import warm
from tests.rollout.tiny_student import CONTEXT, QUESTIONS, STOP, moved, write_student
from tests.tiny import data, distill_module, trainer

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

KEY = "a-secret-of-this-test"
GREEDY = SamplingParams(temperature=0.0, max_tokens=24)
START_SECONDS = 600  # three interpreters import vLLM, one after another, on a machine that others may have


class Server:
    """A server process that can be ended and started again on the same port."""

    def __init__(self, model: Path, folder: Path) -> None:
        self.model = model
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url, self.log = f"http://127.0.0.1:{self.port}", folder / "server.log"
        self.start()

    def start(self) -> None:
        command = ["simct_pl", "serve", "--model", str(self.model)]
        command += ["--port", str(self.port), "--dtype", "float32", "--kv-cache-gib", "0.25", "--enforce-eager"]
        command += ["--max-logprobs", "-1"]  # for the test that asks it as a teacher
        self.process = warm.start(command, self.log.parent, self.log, VLLM_API_KEY=KEY)

    def wait(self) -> None:
        for _ in range(START_SECONDS * 2):
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            try:
                if requests.get(f"{self.url}/health", timeout=1).ok:
                    return
            except requests.ConnectionError:
                pass
            time.sleep(0.5)
        raise AssertionError(self.log.read_text()[-3000:])

    def end(self) -> None:
        """With the engine's own process, as a crash of the host would."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    server = Server(write_student(folder / "student"), folder)
    try:
        server.wait()
        yield server
    finally:
        server.end()


@pytest.fixture
def engine(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> VLLMServerEngine:
    monkeypatch.setenv("VLLM_API_KEY", KEY)
    engine = VLLMServerEngine(server.url, str(tmp_path / "weights"), retries=30)
    engine.check(StudentSource(str(server.model), CONTEXT, False, 1))
    return engine


@pytest.fixture(scope="module")
def student(server: Server) -> PreTrainedModel:
    """Other weights than those of the folder that the server starts from."""
    return moved(distill_module(student=str(server.model)).student)


@pytest.fixture(scope="module")
def prompts(server: Server) -> list[list[int]]:
    tokenizer = distill_module(student=str(server.model)).pair.student
    return [tokenizer.render_prompt([{"role": "user", "content": question}]) for question in QUESTIONS]


@pytest.fixture(scope="module")
def expected(student: PreTrainedModel, prompts: list[list[int]]) -> list[list[int]]:
    """Greedy responses of the student by transformers."""
    engine = HFEngine()
    engine.refresh(student, 0)
    return [g.response_ids for g in engine.generate(prompts, [0] * len(prompts), GREEDY, (STOP,))]


def greedy(engine: VLLMServerEngine, prompts: list[list[int]]) -> list[list[int]]:
    return [g.response_ids for g in engine.generate(prompts, [0] * len(prompts), GREEDY, (STOP,))]


@pytest.mark.parametrize("path", ["/v1/models", "/collective_rpc", "/update_weight_version", "/inference/v1/generate"])
def test_nothing_is_done_without_the_key(server: Server, path: str) -> None:
    for headers in ({}, {"Authorization": "Bearer another"}):
        assert requests.post(server.url + path, json={"method": "x"}, headers=headers, timeout=10).status_code == 401


def test_greedy_is_that_of_transformers_after_a_refresh(
    server: Server,
    engine: VLLMServerEngine,
    student: PreTrainedModel,
    prompts: list[list[int]],
    expected: list[list[int]],
) -> None:
    engine.refresh(distill_module(student=str(server.model)).student, 0)
    assert greedy(engine, prompts) != expected
    engine.refresh(student, 1)
    assert greedy(engine, prompts) == expected
    assert engine.client.held_weights().startswith("step-1-")


def test_samples_keep_their_seeds_logprobs_and_ends(
    engine: VLLMServerEngine, student: PreTrainedModel, prompts: list[list[int]]
) -> None:
    engine.refresh(student, 2)
    sampling, seeds = SamplingParams(temperature=0.8, top_p=0.95, max_tokens=16), list(range(2**62, 2**62 + 6))
    found = engine.generate(prompts, seeds, sampling, (STOP, 20, 21))
    alone = [engine.generate([p], [s], sampling, (STOP, 20, 21))[0] for p, s in zip(prompts, seeds, strict=True)]
    assert [g.response_ids for g in found] == [g.response_ids for g in alone]
    for prompt, g in zip(prompts, found, strict=True):
        logp = student(torch.tensor([prompt + g.response_ids])).logits[0].log_softmax(-1)
        expected = [float(logp[len(prompt) - 1 + i, token]) for i, token in enumerate(g.response_ids)]
        assert g.logprobs == pytest.approx(expected, abs=1e-3)
        assert (g.response_ids[-1] in (STOP, 20, 21)) == (g.finish_reason == "stop")


def test_it_can_be_the_teacher(
    server: Server, engine: VLLMServerEngine, student: PreTrainedModel, prompts: list[list[int]]
) -> None:
    engine.refresh(student, 3)
    module = distill_module(student=str(server.model))
    tokenizer = module.pair.student
    elsewhere = TeacherServer(server.url, top_k=-1, retries=30)
    elsewhere.check(str(server.model), tokenizer, module.objective)
    assert elsewhere.context == CONTEXT - 1
    response = tokenizer.encode("1+2= 3, total 3")
    rows, few = (
        elsewhere.rows(prompts[:1], [response])[0],
        TeacherServer(server.url, 4).rows(prompts[:1], [response])[0],
    )
    logp_NV = student(torch.tensor([prompts[0] + response])).logits[0].log_softmax(-1)[len(prompts[0]) - 1 : -1]
    for row, listed, token, logp_V in zip(rows, few, response, logp_NV, strict=True):
        found = dict(zip(row.ids, row.logprobs, strict=True))
        assert [found[k] for k in range(len(logp_V))] == pytest.approx(logp_V.tolist(), abs=1e-3)
        assert {*listed.ids} == {*logp_V.topk(4).indices.tolist(), token}


def test_a_prompt_past_the_context_is_refused(engine: VLLMServerEngine, student: PreTrainedModel) -> None:
    engine.refresh(student, 3)
    with pytest.raises(PromptDataError, match="max_model_len=128"):
        engine.generate([[5] * CONTEXT], [0], GREEDY, (STOP,))


class Keep(L.Callback):
    """The policy metrics of each step."""

    def __init__(self) -> None:
        self.metrics: list[dict[str, float]] = []

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: object, batch: PromptBatch, batch_idx: int
    ) -> None:
        self.metrics.append({k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("policy/")})


def test_a_fit_samples_from_the_weights_of_each_step(server: Server, engine: VLLMServerEngine, tmp_path: Path) -> None:
    keep, module = (
        Keep(),
        distill_module(student=str(server.model), optimizer=OptimizerConfig(lr=3e-3, warmup_ratio=0.0)),
    )
    callbacks = [RolloutCallback(SamplingParams(max_tokens=30), engine=engine), PolicyMismatch(), keep]
    trainer(tmp_path, callbacks=callbacks, max_steps=3, val_check_interval=2).fit(module, datamodule=data())
    assert [step["policy/lag"] for step in keep.metrics] == [0.0] * 3
    assert max(step["policy/mismatch_p99"] for step in keep.metrics) < 1e-3
    assert len(list((tmp_path / "weights").iterdir())) == 1


def test_a_server_that_died_and_came_back_gets_its_weights_again(
    server: Server,
    engine: VLLMServerEngine,
    student: PreTrainedModel,
    prompts: list[list[int]],
    expected: list[list[int]],
) -> None:
    """The batch is asked while nobody answers; the server starts below it, with the folder's weights."""
    engine.refresh(student, 9)
    server.end()
    server.start()
    with pytest.warns(UserWarning, match="'default'.*gets them again"):
        assert greedy(engine, prompts) == expected
    assert engine.client.held_weights().startswith("step-9-")
