"""The shipped models: folders that load, a teacher that can add, and a student that can almost."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors import safe_open

import simct_pl
from simct_pl.tasks.arithmetic import ChainGrader, TotalGrader
from simct_pl.tasks.datamodule import ArithmeticDataModule
from simct_pl.tasks.tokenizers import MODELS, TinyModel
from simct_pl.warmup.sft import SFTModule

ASSETS = Path(simct_pl.__file__).parent / "assets" / "quickstart"
SIDES = pytest.mark.parametrize(("name", "side"), MODELS.items(), ids=MODELS)


def accuracy(name: str, num_prompts: int = 100) -> tuple[float, float]:
    """Greedy held-out (total, whole chain) accuracy."""
    sft = SFTModule(str(ASSETS / name))
    sft.setup("validate")
    sft.configure_model()
    prompts = ArithmeticDataModule(num_val_prompts=num_prompts).held_out_prompts()
    answered = list(zip(prompts, sft.respond(prompts), strict=True))
    totals = [TotalGrader()(prompt, response) for prompt, response in answered]
    chains = [ChainGrader()(prompt, response) for prompt, response in answered]
    return sum(totals) / num_prompts, sum(chains) / num_prompts


def test_the_teacher_adds() -> None:
    total, chain = accuracy("teacher")
    assert total >= 0.95
    assert chain >= 0.95


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
