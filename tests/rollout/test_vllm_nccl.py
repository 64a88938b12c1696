"""VLLMNCCLEngine with stand-ins for the server and for vLLM's transfer: what is asked of each, and in which order."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from simct_pl.errors import RecipeError, RolloutError
from simct_pl.rollout.engine import SamplingParams, StudentSource
from simct_pl.rollout.vllm_nccl import VLLMNCCLEngine
from tests.rollout.fake_vllm_server import KEY, MAX_MODEL_LEN, FakeServer, fake_server
from tests.tiny import ASSETS, distill_module

PROMPTS = [[5, 6], [7]]
ROUND = ["/start_weight_update", "/update_weights", "/finish_weight_update"]
LABEL = ["/reset_prefix_cache", "/update_weight_version"]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    monkeypatch.setenv("VLLM_API_KEY", KEY)
    with fake_server() as found:
        yield found


@pytest.fixture(scope="module")
def student() -> PreTrainedModel:
    return distill_module().student


@dataclass
class ParamMeta:
    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]


@dataclass
class InitInfo:
    master_address: str
    master_port: int
    world_size: int
    rank: int


class Sender:
    """As vLLM's: declares what comes, then reads the whole source, in a round of three requests."""

    def __init__(self, client: Any, source: Any) -> None:
        self.client, self.source = client, source
        self.sent: list[tuple[str, torch.Tensor]] = []

    @classmethod
    def trainer_init(cls, info: InitInfo, *, client: Any, source: Any) -> Sender:
        client.init_weight_transfer_engine(vars(info))
        return cls(client, source)

    def send_weights(self) -> None:
        self.declared = self.source.metadata()
        self.client.start_weight_update()
        self.client.update_weights({"names": [meta.name for meta in self.declared]})
        self.sent = list(self.source)
        self.client.finish_weight_update()

    def shutdown(self) -> None:
        self.sent = []


@pytest.fixture
def engine(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> VLLMNCCLEngine:
    base, nccl = ModuleType("base"), ModuleType("nccl_engine")
    base.ParamMeta, base.WeightSource = ParamMeta, object  # type: ignore[attr-defined]
    nccl.NCCLTrainerInitInfo, nccl.NCCLTrainerWeightTransferEngine = InitInfo, Sender  # type: ignore[attr-defined]
    for name in ("vllm", "vllm.distributed", "vllm.distributed.weight_transfer"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "vllm.distributed.weight_transfer.base", base)
    monkeypatch.setitem(sys.modules, "vllm.distributed.weight_transfer.nccl_engine", nccl)
    engine = VLLMNCCLEngine(server.url, port=1234, num_server_gpus=2, retries=0, timeout=5.0)
    engine._max_model_len = MAX_MODEL_LEN  # what check() asks for, where there is a GPU
    return engine


def test_weights_are_declared_and_sent_in_one_order_and_then_labelled(
    engine: VLLMNCCLEngine, server: FakeServer, student: PreTrainedModel
) -> None:
    engine.refresh(student, 4)
    assert server.events == ["/init_weight_transfer_engine", *ROUND, *LABEL]
    assert server.label.startswith("step-4-")
    sender = engine._transfer
    expected = dict(student.named_parameters(remove_duplicate=False))
    assert {name for name, _ in sender.sent} == expected.keys()  # a tied head under its own name too
    for meta, (name, tensor) in zip(sender.declared, sender.sent, strict=True):
        assert (meta.name, meta.dtype, meta.shape) == (name, tensor.dtype, tuple(tensor.shape))
        assert torch.equal(tensor, expected[name])
        assert not tensor.requires_grad
    server.events.clear()
    engine.refresh(student, 5)
    assert server.events == [*ROUND, *LABEL]  # one connection for all steps
    found = engine.generate(PROMPTS, [1, 2], SamplingParams(max_tokens=4), (3,))
    assert [generation.response_ids for generation in found] == PROMPTS
    engine.close()
    assert engine.policy_version is None


def test_the_server_joins_behind_the_first_rank(
    engine: VLLMNCCLEngine, student: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(engine._control, "init_weight_transfer_engine", asked.append)
    engine.refresh(student, 0)
    assert asked == [{"master_address": "127.0.0.1", "master_port": 1234, "world_size": 3, "rank": 0}]


def test_a_server_that_lost_its_weights_ends_the_run(
    engine: VLLMNCCLEngine, server: FakeServer, student: PreTrainedModel
) -> None:
    engine.refresh(student, 4)
    server.forgets = 1
    with pytest.raises(RolloutError, match=r"holds weights 'default' and not 'step-4-.*--resume"):
        engine.generate(PROMPTS, [1, 2], SamplingParams(max_tokens=4), (3,))


def test_without_a_gpu_it_is_refused_first() -> None:
    with pytest.raises(RecipeError, match="GPU to GPU"):
        VLLMNCCLEngine().check(StudentSource(str(ASSETS / "student"), 128, False, 1))
    with pytest.raises(RecipeError, match="num_server_gpus is 0"):
        VLLMNCCLEngine(num_server_gpus=0)
