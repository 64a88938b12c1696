"""HFEngine: batch-invariant sampling from the right distribution, with honest log-probabilities."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, TopPLogitsWarper

from simct_pl.errors import RecipeError, RolloutError
from simct_pl.rollout import hf
from simct_pl.rollout.engine import SamplingParams, sample_seed
from simct_pl.rollout.hf import HFEngine, NucleusWarper

STOP = 3
PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13], [5, 6, 7]]


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=24,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        initializer_range=0.7,
    )
    return LlamaForCausalLM(config).eval().requires_grad_(False)


def engine_of(model: LlamaForCausalLM, batch_size: int = 64) -> HFEngine:
    engine = HFEngine(batch_size)
    engine.refresh(model, 0)
    return engine


def test_a_sample_does_not_depend_on_its_neighbours(model: LlamaForCausalLM) -> None:
    sampling, seeds = SamplingParams(temperature=1.0, max_tokens=12), [11, 12, 13, 14]
    together = engine_of(model).generate(PROMPTS, seeds, sampling, (STOP,))
    alone = [engine_of(model, 1).generate([p], [s], sampling, (STOP,))[0] for p, s in zip(PROMPTS, seeds, strict=True)]
    assert [g.response_ids for g in together] == [g.response_ids for g in alone]
    assert together[0].response_ids != together[3].response_ids  # same prompt, other seed


@pytest.mark.parametrize(
    "sampling", [SamplingParams(temperature=0.0, max_tokens=10), SamplingParams(top_k=1, max_tokens=10)]
)
def test_greedy_follows_the_argmax_of_a_plain_forward(model: LlamaForCausalLM, sampling: SamplingParams) -> None:
    for generation, prompt in zip(engine_of(model).generate(PROMPTS, [0] * 4, sampling, (STOP,)), PROMPTS, strict=True):
        ids = list(prompt)
        for token in generation.response_ids:
            assert token == int(model(torch.tensor([ids])).logits[0, -1].argmax())
            ids.append(token)


def test_logprobs_are_those_of_the_model_at_temperature_1(model: LlamaForCausalLM) -> None:
    sampling = SamplingParams(temperature=0.6, top_p=0.9, max_tokens=10)
    for generation, prompt in zip(
        engine_of(model).generate(PROMPTS, [1, 2, 3, 4], sampling, (STOP,)), PROMPTS, strict=True
    ):
        logp = model(torch.tensor([prompt + generation.response_ids])).logits[0].log_softmax(-1)
        expected = [float(logp[len(prompt) - 1 + i, t]) for i, t in enumerate(generation.response_ids)]
        assert generation.logprobs == pytest.approx(expected, abs=1e-5)


def test_stop_is_kept_and_ends_the_response(model: LlamaForCausalLM) -> None:
    generations = engine_of(model).generate([[5]] * 64, list(range(64)), SamplingParams(max_tokens=8), (STOP, 4))
    assert {g.finish_reason for g in generations} == {"stop", "length"}
    for g in generations:
        stops = [t in (STOP, 4) for t in g.response_ids]
        assert stops == [False] * (len(stops) - 1) + [g.finish_reason == "stop"]
        assert len(g.logprobs) == len(g.response_ids)
        assert g.finish_reason == "stop" or len(g.response_ids) == 8


@pytest.mark.parametrize(
    ("temperature", "top_p", "top_k"), [(1.0, 1.0, None), (0.5, 1.0, None), (1.0, 0.7, None), (1.0, 1.0, 3)]
)
def test_first_token_frequencies(model: LlamaForCausalLM, temperature: float, top_p: float, top_k: int | None) -> None:
    """Against probabilities truncated and renormalised here, by sorting."""
    num = 4000
    sampling = SamplingParams(temperature=temperature, top_p=top_p, top_k=top_k, max_tokens=1)
    generations = engine_of(model, num).generate([[5, 6]] * num, list(range(num)), sampling, (STOP,))
    counts = torch.bincount(torch.tensor([g.response_ids[0] for g in generations]), minlength=24).double()
    p = (model(torch.tensor([[5, 6]])).logits[0, -1].double() / temperature).softmax(-1)
    sorted_p, order = p.sort(descending=True)
    keep = (sorted_p.cumsum(0) - sorted_p) < top_p
    if top_k is not None:
        keep[top_k:] = False
    expected = torch.zeros(24, dtype=torch.float64).scatter(0, order, sorted_p * keep)
    expected /= expected.sum()
    assert counts[expected == 0].sum() == 0
    sigma = (num * expected * (1 - expected)).sqrt()
    assert ((counts - num * expected).abs() <= 5 * sigma + 3).all()


def test_the_checkpoints_own_sampling_defaults_are_ignored_and_restored(model: LlamaForCausalLM) -> None:
    sampling = SamplingParams(temperature=0.0, max_tokens=10)
    plain = engine_of(model).generate(PROMPTS, [0] * 4, sampling, (STOP,))
    model.generation_config.repetition_penalty = 5.0
    try:
        assert engine_of(model).generate(PROMPTS, [0] * 4, sampling, (STOP,)) == plain
        assert model.generation_config.repetition_penalty == 5.0
    finally:
        model.generation_config.repetition_penalty = None


def test_training_mode_and_gradient_checkpointing_come_back(model: LlamaForCausalLM) -> None:
    model.train()
    model.gradient_checkpointing_enable()
    try:
        engine_of(model).generate([[5]], [0], SamplingParams(max_tokens=2), (STOP,))
        assert model.training
        assert model.is_gradient_checkpointing
    finally:
        model.gradient_checkpointing_disable()
        model.eval()


def test_generating_before_any_refresh_is_refused() -> None:
    with pytest.raises(RolloutError, match="refresh"):
        HFEngine().generate([[1]], [0], SamplingParams(), (STOP,))


@pytest.mark.parametrize(
    "values", [{"max_tokens": 0}, {"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.5}, {"top_k": 0}], ids=str
)
def test_sampling_values_outside_their_range_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(RecipeError, match=next(iter(values))):
        SamplingParams(**values)  # type: ignore[arg-type]


def test_seeds_differ_in_every_part_and_are_stable() -> None:
    seeds = {sample_seed(*parts) for parts in [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)]}
    assert len(seeds) == 5
    assert sample_seed(7, 3, 2, 1) == 1151961288138025769


def test_after_a_refresh_the_engine_holds_the_students_very_tensors(model: LlamaForCausalLM) -> None:
    engine = engine_of(model)
    engine.refresh(model, 7)
    assert engine.policy_version == 7
    assert engine._model is not None
    own = dict(engine._model.named_parameters())
    assert all(own[name].data_ptr() == parameter.data_ptr() for name, parameter in model.named_parameters())


@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.95, 0.999])
@pytest.mark.parametrize("candidates", [1, 20, 400])
def test_the_nucleus_is_that_of_a_full_sort(top_p: float, candidates: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Peaked rows are cut from their likeliest tokens, flat ones by sorting, side by side in one batch."""
    monkeypatch.setattr(hf, "NUCLEUS_CANDIDATES", candidates)
    generator = torch.Generator().manual_seed(0)
    scores_BV = torch.randn(6, 300, generator=generator) * torch.tensor([0.1, 0.5, 1, 2, 5, 20])[:, None]
    ids_BS = torch.zeros(6, 1, dtype=torch.int64)
    torch.testing.assert_close(NucleusWarper(top_p)(ids_BS, scores_BV), TopPLogitsWarper(top_p)(ids_BS, scores_BV))
