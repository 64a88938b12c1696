"""VLLMServerEngine against a stand-in: order of events, lost weights, trouble on the line. Needs no vLLM."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from transformers import PreTrainedModel

from simct_pl.errors import PromptDataError, RecipeError, RolloutError
from simct_pl.rollout.engine import SamplingParams, StudentSource
from simct_pl.rollout.vllm_server import VLLMServerEngine
from simct_pl.rollout.vllm_weights import named_weights
from tests.rollout.fake_vllm_server import KEY, FakeServer, fake_server
from tests.tiny import ASSETS, distill_module

STUDENT = StudentSource(str(ASSETS / "student"), 128, False, 1)
PROMPTS = [[5, 6], [7], [8, 9, 10]]
LOAD = ["/collective_rpc", "FOLDER", "/reset_prefix_cache", "/update_weight_version"]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    monkeypatch.setenv("VLLM_API_KEY", KEY)
    with fake_server() as found:
        yield found


@pytest.fixture(scope="module")
def student() -> PreTrainedModel:
    return distill_module().student


def engine_for(server: FakeServer, folder: Path, **overrides: Any) -> VLLMServerEngine:
    arguments = {"weights_folder": str(folder), "retries": 4, "max_concurrency": 2, "timeout": 5.0}
    engine = VLLMServerEngine(server.url, **{**arguments, **overrides})
    engine.check(STUDENT)
    server.events.clear()
    return engine


def events(server: FakeServer) -> list[str]:
    return ["FOLDER" if event.count("/") > 1 else event for event in server.events if "inference" not in event]


def answers(engine: VLLMServerEngine) -> list[list[int]]:
    return [g.response_ids for g in engine.generate(PROMPTS, [1, 2, 3], SamplingParams(max_tokens=4), (3,))]


def test_weights_are_whole_before_the_server_is_told_and_old_ones_go_after(
    server: FakeServer, student: PreTrainedModel, tmp_path: Path
) -> None:
    engine = engine_for(server, tmp_path)
    engine.refresh(student, 4)
    assert events(server) == LOAD
    (first,) = tmp_path.iterdir()
    assert server.events[1] == str(first)
    assert first.name.startswith("step-4-")
    assert server.label == first.name
    assert load_file(first / "model-00001.safetensors").keys() == {name for name, _ in named_weights(student)}
    engine.refresh(student, 5)
    (second,) = tmp_path.iterdir()
    assert second.name.startswith("step-5-")
    assert engine.policy_version == 5
    assert answers(engine) == PROMPTS
    engine.close()
    assert list(tmp_path.iterdir()) == []
    assert engine.policy_version is None


def test_a_server_that_lost_its_weights_gets_them_again(
    server: FakeServer, student: PreTrainedModel, tmp_path: Path
) -> None:
    engine = engine_for(server, tmp_path)
    engine.refresh(student, 0)
    label, server.label = server.label, "default"
    server.events.clear()
    with pytest.warns(UserWarning, match="gets them again"):
        assert answers(engine) == PROMPTS
    assert events(server) == ["/weight_info", *LOAD]
    assert server.label == label


def test_a_server_that_keeps_losing_them_is_an_error(
    server: FakeServer, student: PreTrainedModel, tmp_path: Path
) -> None:
    engine = engine_for(server, tmp_path)
    engine.refresh(student, 0)
    server.forgets = 1000
    with pytest.warns(UserWarning, match="gets them again"), pytest.raises(RolloutError, match="lost its weights 3"):
        answers(engine)


def test_trouble_that_passes_is_waited_for(server: FakeServer, student: PreTrainedModel, tmp_path: Path) -> None:
    engine = engine_for(server, tmp_path)
    server.trouble = [503, 502]
    engine.refresh(student, 0)
    server.trouble = [503]
    assert answers(engine) == PROMPTS


def test_a_refusal_is_told_in_the_servers_words_and_leaves_no_version(
    server: FakeServer, student: PreTrainedModel, tmp_path: Path
) -> None:
    engine = engine_for(server, tmp_path)
    server.trouble = [500]
    with pytest.raises(RolloutError, match=r"refuses /collective_rpc \(500\)"):
        engine.refresh(student, 0)
    assert engine.policy_version is None
    with pytest.raises(RolloutError, match="no weights yet"):
        answers(engine)


def test_a_server_of_another_kind_a_wrong_key_and_no_key_are_refused_first(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = VLLMServerEngine(server.url, retries=0)
    server.trouble = [404]
    with pytest.raises(RolloutError, match="simct_pl serve"):
        engine.check(STUDENT)
    monkeypatch.setenv("VLLM_API_KEY", "another")
    with pytest.raises(RolloutError, match="refuses the key in VLLM_API_KEY"):
        engine.check(STUDENT)
    monkeypatch.delenv("VLLM_API_KEY")
    with pytest.raises(RecipeError, match="VLLM_API_KEY is not set"):
        engine.check(STUDENT)


def test_a_dead_server_is_an_error_that_says_what_to_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", KEY)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.raises(RolloutError, match="python -m simct_pl serve --model"):
        VLLMServerEngine(f"http://127.0.0.1:{port}", retries=1).check(STUDENT)


def test_a_prompt_longer_than_the_server_takes_is_refused(
    server: FakeServer, student: PreTrainedModel, tmp_path: Path
) -> None:
    engine = engine_for(server, tmp_path)
    engine.refresh(student, 0)
    with pytest.raises(PromptDataError, match="16 tokens"):
        engine.generate([[1] * 16], [0], SamplingParams(), (3,))


@pytest.mark.parametrize(
    "values", [{"url": "127.0.0.1:8000"}, {"max_concurrency": 0}, {"timeout": 0.0}, {"retries": -1}], ids=str
)
def test_values_outside_their_range_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=next(iter(values))):
        VLLMServerEngine(**values)
