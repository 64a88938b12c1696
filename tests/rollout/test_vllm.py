"""VLLMEngine on vLLM itself, in this process: its weights, its samples, its log-probabilities, its life.

The student's folder carries sampling defaults and end tokens that would spoil the tests if the engine read them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import lightning as L
import pytest
import torch
from transformers import PreTrainedModel

from callbacks import PolicyMismatch, RolloutCallback
from simct_pl.errors import PromptDataError
from simct_pl.models.merging import merged_state_dict
from simct_pl.rollout.engine import Generation, SamplingParams, StudentSource
from simct_pl.rollout.hf import HFEngine
from simct_pl.rollout.vllm import VLLMEngine
from simct_pl.training.optim import OptimizerConfig
from simct_pl.types import PromptBatch
from tests.models.test_lora import PLAIN, move
from tests.rollout.read_back import read_back
from tests.rollout.tiny_student import CONTEXT, QUESTIONS, STOP, moved, write_student
from tests.tiny import data, distill_module, trainer

pytestmark = [pytest.mark.vllm, pytest.mark.slow]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_student(tmp_path_factory.mktemp("vllm") / "student")


@pytest.fixture(scope="module")
def student(folder: Path) -> PreTrainedModel:
    """Other weights than those of the folder that the engine starts from."""
    return moved(distill_module(student=str(folder)).student)


@pytest.fixture(scope="module")
def engine(folder: Path, student: PreTrainedModel) -> Iterator[VLLMEngine]:
    engine = VLLMEngine(dtype="float32", kv_cache_gib=0.25, enforce_eager=True)
    engine.check(StudentSource(str(folder), CONTEXT, False, 1))
    engine.refresh(student, 0)
    yield engine
    engine.close()


@pytest.fixture
def fresh(engine: VLLMEngine, student: PreTrainedModel) -> VLLMEngine:
    """The engine with the student's weights."""
    engine.refresh(student, 3)
    return engine


@pytest.fixture(scope="module")
def prompts(folder: Path) -> list[list[int]]:
    tokenizer = distill_module(student=str(folder)).pair.student
    return [tokenizer.render_prompt([{"role": "user", "content": question}]) for question in QUESTIONS]


def by_hf(student: PreTrainedModel, prompts: list[list[int]], sampling: SamplingParams) -> list[Generation]:
    engine = HFEngine()
    engine.refresh(student, 3)
    return engine.generate(prompts, [0] * len(prompts), sampling, (STOP,))


def test_after_a_refresh_every_weight_is_the_students_bit_for_bit(fresh: VLLMEngine, student: PreTrainedModel) -> None:
    assert fresh._llm is not None
    (found,) = fresh._llm.apply_model(read_back)
    own = dict(student.named_parameters())
    head = found.pop("lm_head.weight")
    assert found.keys() == own.keys()
    for name, parameter in own.items():
        assert torch.equal(found[name], parameter), name
    assert student.config.tie_word_embeddings
    assert torch.equal(head, own["model.embed_tokens.weight"])


def test_what_is_not_trained_is_sent_once(engine: VLLMEngine, folder: Path) -> None:
    """A frozen layer and the frozen embeddings; not a frozen matrix in a layer that is trained."""
    student = distill_module(student=str(folder)).student
    engine.refresh(student, 1)
    assert engine._llm is not None
    (before,) = engine._llm.apply_model(read_back)
    for name, parameter in student.named_parameters():
        parameter.requires_grad_("layers.1." in name and "q_proj" not in name)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter += 0.125
    engine.refresh(student, 2)
    (found,) = engine._llm.apply_model(read_back)
    own = dict(student.named_parameters())
    for name, weight in found.items():
        expected = own[name] if "layers.1." in name else before[name]
        assert torch.equal(weight, expected), name
    engine.refresh(distill_module(student=str(folder)).student, 3)  # another model: all of it
    (found,) = engine._llm.apply_model(read_back)
    assert all(torch.equal(weight, before[name]) for name, weight in found.items())


def test_adapters_arrive_merged(engine: VLLMEngine, folder: Path, prompts: list[list[int]]) -> None:
    """The second refresh leaves out what rests. vLLM knows of no adapter, and says what the live student says."""
    student = distill_module(student=str(folder), lora=PLAIN).student
    engine.refresh(student, 1)
    move(student)
    engine.refresh(student, 2)
    assert engine._llm is not None
    (found,) = engine._llm.apply_model(read_back)
    merged = merged_state_dict(student)
    assert all(torch.equal(weight, merged[name]) for name, weight in found.items())
    sampling = SamplingParams(temperature=0.0, max_tokens=30)
    said = engine.generate(prompts, [0] * len(prompts), sampling, (STOP,))
    expected = by_hf(student, prompts, sampling)
    assert [one.response_ids for one in said] == [one.response_ids for one in expected]
    base = distill_module(student=str(folder)).student
    assert [one.response_ids for one in by_hf(base, prompts, sampling)] != [one.response_ids for one in said]
    for one, other in zip(said, expected, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-3)


def test_the_engine_keeps_its_weights_when_the_students_change(
    fresh: VLLMEngine, student: PreTrainedModel, prompts: list[list[int]]
) -> None:
    sampling = SamplingParams(temperature=0.0, max_tokens=12)
    before = fresh.generate(prompts, [0] * len(prompts), sampling, (STOP,))
    weights = {name: parameter.clone() for name, parameter in student.named_parameters()}
    for parameter in student.parameters():
        parameter.zero_()
    try:
        assert fresh.generate(prompts, [0] * len(prompts), sampling, (STOP,)) == before
    finally:
        for name, parameter in student.named_parameters():
            parameter.copy_(weights[name])


def test_greedy_is_that_of_transformers(fresh: VLLMEngine, student: PreTrainedModel, prompts: list[list[int]]) -> None:
    sampling = SamplingParams(temperature=0.0, max_tokens=30)
    found = fresh.generate(prompts, [0] * len(prompts), sampling, (STOP,))
    expected = by_hf(student, prompts, sampling)
    assert [g.response_ids for g in found] == [g.response_ids for g in expected]
    assert [g.finish_reason for g in found] == [g.finish_reason for g in expected]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.logprobs == pytest.approx(theirs.logprobs, abs=1e-4)


@pytest.mark.parametrize(
    "sampling",
    [SamplingParams(max_tokens=20), SamplingParams(temperature=0.6, top_p=0.9, top_k=20, max_tokens=20)],
    ids=["plain", "truncated"],
)
def test_logprobs_are_those_of_the_model_at_temperature_1(
    fresh: VLLMEngine, student: PreTrainedModel, prompts: list[list[int]], sampling: SamplingParams
) -> None:
    generations = fresh.generate(prompts, list(range(len(prompts))), sampling, (STOP,))
    for prompt, generation in zip(prompts, generations, strict=True):
        logp = student(torch.tensor([prompt + generation.response_ids])).logits[0].log_softmax(-1)
        expected = [float(logp[len(prompt) - 1 + i, token]) for i, token in enumerate(generation.response_ids)]
        assert generation.logprobs == pytest.approx(expected, abs=1e-3)


def test_a_sample_does_not_depend_on_its_neighbours(fresh: VLLMEngine, prompts: list[list[int]]) -> None:
    sampling, seeds = SamplingParams(temperature=1.0, max_tokens=16), [2**62 + i for i in range(len(prompts))]
    together = fresh.generate(prompts, seeds, sampling, (STOP,))
    alone = [fresh.generate([p], [s], sampling, (STOP,))[0] for p, s in zip(prompts, seeds, strict=True)]
    assert [g.response_ids for g in together] == [g.response_ids for g in alone]
    others = fresh.generate(prompts, [seed + 1 for seed in seeds], sampling, (STOP,))
    assert [g.response_ids for g in together] != [g.response_ids for g in others]


def test_first_token_frequencies(fresh: VLLMEngine, student: PreTrainedModel, prompts: list[list[int]]) -> None:
    """Against probabilities truncated and renormalised here, by sorting."""
    num, temperature, top_p = 1500, 1.5, 0.8
    sampling = SamplingParams(temperature=temperature, top_p=top_p, max_tokens=1)
    found = fresh.generate([prompts[0]] * num, list(range(num)), sampling, (STOP,))
    p = (student(torch.tensor([prompts[0]])).logits[0, -1].double() / temperature).softmax(-1)
    counts = torch.bincount(torch.tensor([g.response_ids[0] for g in found]), minlength=len(p)).double()
    sorted_p, order = p.sort(descending=True)
    kept = sorted_p * ((sorted_p.cumsum(0) - sorted_p) < top_p)
    expected = torch.zeros_like(p).scatter(0, order, kept / kept.sum())
    assert counts[expected == 0].sum() == 0
    assert (expected > 0).sum() > 3
    assert ((counts - num * expected).abs() <= 5 * (num * expected * (1 - expected)).sqrt() + 3).all()


def test_stops_are_ours_alone_are_kept_and_end_the_response(fresh: VLLMEngine, prompts: list[list[int]]) -> None:
    num = 48
    stops = (STOP, 20, 21, 22, 23)
    found = fresh.generate([prompts[0]] * num, list(range(num)), SamplingParams(2.0, max_tokens=10), stops)
    assert {g.finish_reason for g in found} == {"stop", "length"}
    for g in found:
        is_stop = [token in stops for token in g.response_ids]
        assert is_stop == [False] * (len(is_stop) - 1) + [g.finish_reason == "stop"]
        assert g.finish_reason == "stop" or len(g.response_ids) == 10
    assert len({g.response_ids[-1] for g in found if g.finish_reason == "stop"}) > 1


def test_a_response_past_the_context_is_cut_and_a_prompt_past_it_refused(
    fresh: VLLMEngine, prompts: list[list[int]]
) -> None:
    long = (prompts[0] * 30)[: CONTEXT - 5]
    (cut,) = fresh.generate([long], [0], SamplingParams(max_tokens=30), (270,))
    assert cut.finish_reason == "length"
    assert len(cut.response_ids) == 5
    with pytest.raises(PromptDataError, match="max_model_len=128"):
        fresh.generate([(prompts[0] * 30)[:CONTEXT]], [0], SamplingParams(), (STOP,))


class Keep(L.Callback):
    """The policy metrics of each step."""

    def __init__(self) -> None:
        self.metrics: list[dict[str, float]] = []

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: object, batch: PromptBatch, batch_idx: int
    ) -> None:
        self.metrics.append({k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("policy/")})


def fit(engine: VLLMEngine, student: Path, folder: Path) -> list[dict[str, float]]:
    """Policy metrics of three steps with validation between them, at a rate at which a step shows."""
    keep, module = Keep(), distill_module(student=str(student), optimizer=OptimizerConfig(lr=3e-3, warmup_ratio=0.0))
    callbacks = [RolloutCallback(SamplingParams(max_tokens=30), engine=engine), PolicyMismatch(), keep]
    trainer(folder, callbacks=callbacks, max_steps=3, val_check_interval=2).fit(module, datamodule=data())
    return keep.metrics


def test_a_fit_samples_from_the_weights_of_each_step(engine: VLLMEngine, folder: Path, tmp_path: Path) -> None:
    metrics = fit(engine, folder, tmp_path)
    assert [step["policy/lag"] for step in metrics] == [0.0] * 3
    assert max(step["policy/mismatch_p99"] for step in metrics) < 1e-3
    assert engine.policy_version is not None


def test_weights_of_another_step_show_in_the_mismatch(
    engine: VLLMEngine, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The figure that the test above bounds, with an engine that says it refreshed and did not."""
    engine.refresh(distill_module(student=str(folder)).student, 0)

    def claim(model: PreTrainedModel, policy_version: int) -> None:
        assert engine._llm is not None
        engine._llm.update_weight_version(str(policy_version))
        engine.policy_version = policy_version

    monkeypatch.setattr(engine, "refresh", claim)
    with pytest.warns(UserWarning, match="Engine and trainer disagree"):
        metrics = fit(engine, folder, tmp_path)
    assert metrics[0]["policy/mismatch_p99"] < 1e-3
    assert metrics[-1]["policy/mismatch_p99"] > 1e-2


def test_an_engine_that_was_closed_starts_again_and_leaves_the_trainers_process_as_it_is(
    fresh: VLLMEngine, student: PreTrainedModel, prompts: list[list[int]]
) -> None:
    sampling = SamplingParams(temperature=0.0, max_tokens=8)
    before = fresh.generate(prompts, [0] * len(prompts), sampling, (STOP,))
    fresh.close()
    assert fresh.policy_version is None
    assert not torch.distributed.is_initialized()
    environment, set_num_threads, num_threads = dict(os.environ), torch.set_num_threads, torch.get_num_threads()
    torch.manual_seed(7)
    state = torch.get_rng_state()
    fresh.refresh(student, 5)
    assert fresh.generate(prompts, [0] * len(prompts), sampling, (STOP,)) == before
    assert dict(os.environ) == environment
    assert torch.set_num_threads is set_num_threads
    assert torch.get_num_threads() == num_threads
    assert torch.equal(torch.get_rng_state(), state)
