"""The shipped models: folders that load, a teacher that can add, and a student that can almost."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import simct_pl
from simct_pl.rollout.engine import SamplingParams
from simct_pl.tasks.arithmetic import ChainGrader, TotalGrader, corrupted, distinct_problems
from simct_pl.tasks.datamodule import ArithmeticDataModule
from simct_pl.tasks.tokenizers import MODELS, TinyModel
from simct_pl.warmup.sft import SFTModule

ASSETS = Path(simct_pl.__file__).parent / "assets" / "quickstart"
SIDES = pytest.mark.parametrize(("name", "side"), MODELS.items(), ids=MODELS)


def loaded(name: str) -> SFTModule:
    sft = SFTModule(str(ASSETS / name))
    sft.setup("validate")
    sft.configure_model()
    return sft


def byte_length(sft: SFTModule, ids: list[int]) -> int:
    return len(sft.tokenizer.table.join(ids))


def accuracy(name: str, temperature: float = 0.0, num_prompts: int = 100) -> tuple[float, float]:
    """Held-out (total, whole chain) accuracy."""
    sft = loaded(name)
    prompts = ArithmeticDataModule(num_val_prompts=num_prompts).held_out_prompts()
    rendered = [sft.tokenizer.render_prompt(prompt.messages) for prompt in prompts]
    sft.engine.refresh(sft.model, 0)
    sampling = SamplingParams(temperature=temperature, max_tokens=48)
    found = sft.engine.generate(rendered, list(range(num_prompts)), sampling, sft.tokenizer.stop_ids)
    answered = [(p, sft.tokenizer.response_text(g.response_ids)) for p, g in zip(prompts, found, strict=True)]
    totals = [TotalGrader()(prompt, response) for prompt, response in answered]
    chains = [ChainGrader()(prompt, response) for prompt, response in answered]
    return sum(totals) / num_prompts, sum(chains) / num_prompts


@pytest.mark.parametrize("name", ["teacher", "two_digit_teacher"])
def test_the_teacher_adds(name: str) -> None:
    assert min(accuracy(name)) >= 0.95


@pytest.mark.parametrize("name", ["teacher", "two_digit_teacher"])
def test_the_teacher_samples_what_it_would_answer(name: str) -> None:
    """A teacher that is noise itself teaches noise to every student that samples at temperature 1."""
    assert min(accuracy(name, temperature=1.0)) >= 0.88


@pytest.mark.parametrize("name", ["teacher", "two_digit_teacher"])
def test_the_teacher_goes_on_from_a_wrong_number_as_it_stands(name: str) -> None:
    """Against the likeliest token of the right continuation at each of its positions, in one forward a chain."""
    sft, followed = loaded(name), []
    rng = random.Random(3)
    for problem in distinct_problems(0, 100, 3, 50, held_out=True):
        prompt = corrupted(problem.prompt(0), problem, rng)
        ((_, end),) = prompt.unsupervised_spans
        (example,) = sft.examples([prompt])
        row_V = sft.model(torch.tensor([example.prompt_ids + example.response_ids])).logits[0].argmax(-1)
        first = next(i for i in range(len(example.response_ids)) if byte_length(sft, example.response_ids[:i]) >= end)
        start = len(example.prompt_ids) + first
        followed.append(row_V[start - 1 : -1].tolist() == example.response_ids[first:])
    assert sum(followed) >= 85


@pytest.mark.parametrize("name", ["student", "same_tokenizer_student"])
def test_the_student_adds_but_has_something_to_learn(name: str) -> None:
    total, _ = accuracy(name)
    assert 0.55 <= total <= 0.85


@SIDES
def test_the_folder_is_the_one_that_the_code_describes(name: str, side: TinyModel, tmp_path: Path) -> None:
    side.save_untrained(tmp_path)
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (ASSETS / name / file).read_bytes() == (tmp_path / file).read_bytes(), file


@SIDES
def test_the_folder_is_small_and_says_where_it_comes_from(name: str, side: TinyModel) -> None:
    assert sum(file.stat().st_size for file in (ASSETS / name).iterdir()) < 2_000_000
    card = (ASSETS / name / "MODEL_CARD.md").read_text()
    assert "python -m simct_pl fit --recipe recipes/quickstart_" in card
    assert f"quickstart{'/' if name.startswith('same') else '_'}{name}" in card
    with safe_open(ASSETS / name / "model.safetensors", "pt") as weights:
        assert {weights.get_tensor(key).dtype.itemsize for key in weights.keys()} == {4}  # noqa: SIM118 - no mapping
