"""A plan of supervised fine-tuning against sizes worked out by hand, and the dry run that prints it."""

from __future__ import annotations

from pathlib import Path

import pytest

from simct_pl.commands import dry_run
from simct_pl.commands.trainer import run
from simct_pl.config.lightning_cli import open_recipes
from simct_pl.data.prompts import PromptDataModule
from simct_pl.data.source import PromptSource
from simct_pl.errors import PromptDataError, RecipeError
from simct_pl.models import loading as models
from simct_pl.models.loading import load_config
from simct_pl.models.sharding import ShardedStrategy, Sharding
from simct_pl.planning.layout import Layout
from simct_pl.planning.plan import Plan
from simct_pl.planning.shapes import ModelShape
from simct_pl.planning.supervised import ExampleLengths, plan_supervised, read_lengths
from simct_pl.warmup.sft import SFTModule
from tests.evaluation.samples import write_jsonl
from tests.planning.test_layout import settings
from tests.tiny import ASSETS, data

STUDENT = str(ASSETS / "student")
SHAPE = ModelShape.from_config(load_config("model", STUDENT))
LENGTHS = ExampleLengths(prompt=20, response=80, mean_response=30.0)


def planned(module: SFTModule, **trainer: object) -> Plan:
    return plan_supervised(module, data(), Layout.of(settings(**trainer), "h100"), LENGTHS)


def test_memory_is_that_of_one_model_in_training() -> None:
    sharding = Sharding(param_dtype="bfloat16")
    module = SFTModule(
        STUDENT, sharding=sharding, gradient_checkpointing=True, micro_batch_tokens=300, chunk_tokens=100
    )
    plan = planned(module, strategy=ShardedStrategy())
    held = {item.name: item.bytes for item in plan.memory}
    share = SHAPE.parameters / 8
    assert (held["weights"], held["gradients"], held["AdamW moments"]) == (4 * share, 4 * share, 8 * share)
    assert held["activations"] == 3 * 100 * SHAPE.activation_bytes(2, checkpointing=True)
    assert held["one layer, recomputed"] == 3 * 100 * SHAPE.layer_activation_bytes(2)
    assert held["logits of a chunk"] == 100 * SHAPE.vocab * (2 + 2 + 4 + 4)
    assert not [name for name in held if "teacher" in name or "engine" in name]
    assert plan.peak == pytest.approx(sum(held.values()))
    assert plan.step.num_prompts == 8 * data().batch_size


def test_what_is_offloaded_or_kept_whole() -> None:
    offloaded = SFTModule(STUDENT, sharding=Sharding(cpu_offload=True))
    names = {item.name for item in planned(offloaded, strategy=ShardedStrategy()).memory}
    assert names.isdisjoint({"weights", "gradients", "AdamW moments"})
    plain = {item.name: item.bytes for item in planned(SFTModule(STUDENT), devices=2).memory}
    assert plain["weights"] == 4 * SHAPE.parameters
    assert "one layer, recomputed" not in plain


def test_time_is_of_the_mean_response_and_of_training_alone() -> None:
    plan = planned(SFTModule(STUDENT), devices=1)
    assert plan.response_tokens == 30
    assert [phase.name.split(" (")[0] for phase in plan.phases] == [
        "student forward",
        "loss: heads",
        "student backward",
        "sync",
        "optimizer",
    ]
    forward = plan.phases[0]
    assert forward.flops == data().batch_size * (SHAPE.matrix_flops(50) + SHAPE.attention_flops(50))


def test_settings_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(RecipeError, match="go together"):
        planned(SFTModule(STUDENT, sharding=Sharding()))


def examples(path: Path, *rows: dict[str, str]) -> PromptDataModule:
    source = PromptSource(str(write_jsonl(path, list(rows))), prompt_field="q", response_field="a")
    return PromptDataModule(source, shuffle_buffer=1)


def test_lengths_are_those_of_the_examples(tmp_path: Path) -> None:
    module = SFTModule(STUDENT)
    rows = [{"q": "1+2+3?", "a": "total 6"}, {"q": "11+22+33?", "a": "11+22= 33, 33+33= 66, total 66"}]
    found = read_lengths(module, examples(tmp_path / "rows.jsonl", *rows), 64)
    responses = [len(module.tokenizer.encode(row["a"])) + 1 for row in rows]
    assert found.prompt == len(module.tokenizer.render_prompt([{"role": "user", "content": "11+22+33?"}]))
    assert (found.response, found.mean_response) == (max(responses), sum(responses) / 2)


def test_a_response_that_is_missing_is_named(tmp_path: Path) -> None:
    source = PromptSource(str(write_jsonl(tmp_path / "rows.jsonl", [{"q": "1+2+3?"}])), prompt_field="q")
    with pytest.raises(PromptDataError, match="response_field"):
        read_lengths(SFTModule(STUDENT), PromptDataModule(source), 64)


def test_the_dry_run_prints_the_plan_and_loads_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(models.AutoModelForCausalLM, "from_pretrained", refuse)
    assert run(["fit", "--recipe", "long_chains_student", "--dry_run"]) == 0
    printed = capsys.readouterr().out
    assert "Supervised fine-tuning" in printed
    assert "logits of a chunk" in printed
    assert not list(tmp_path.iterdir())


def test_a_preflight_needs_a_pair() -> None:
    cli = open_recipes(["fit", "--recipe", "long_chains_student"], dry_run.PlanningCLI)
    with pytest.raises(RecipeError, match="SFTModule; expected a DistillModule"):
        dry_run.plan_run(cli, None)
