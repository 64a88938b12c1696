"""A plan of supervised fine-tuning against sizes worked out by hand, and the dry run that prints it."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.live_bytes import LiveBytes
from simct_pl.commands.trainer import run
from simct_pl.config.lightning_cli import open_recipes
from simct_pl.data.prompts import PromptDataModule
from simct_pl.data.source import PromptSource
from simct_pl.errors import PromptDataError, RecipeError
from simct_pl.models import loading as models
from simct_pl.models.loading import load_causal_lm
from simct_pl.models.packing import Layout, PackedRow, PaddedRows
from simct_pl.models.sharding import ShardedStrategy, Sharding
from simct_pl.planning.deployment import Deployment
from simct_pl.planning.memory import Moment, Part
from simct_pl.planning.plan import Plan
from simct_pl.planning.run import PlanningCLI, plan_run
from simct_pl.planning.supervised import ExampleLengths, plan_supervised, read_lengths
from simct_pl.warmup.sft import SFTModule
from simct_pl.warmup.supervised import Example
from tests.evaluation.samples import write_jsonl
from tests.planning.test_deployment import settings
from tests.tiny import ASSETS, data

STUDENT = str(ASSETS / "student")
LENGTHS = ExampleLengths(prompt=20, response=80, mean_response=30.0)


def planned(module: SFTModule, **trainer: object) -> Plan:
    return plan_supervised(module, data(), Deployment.of(settings(**trainer), "h100"), LENGTHS)


def test_memory_is_that_of_one_model_in_training() -> None:
    sharding = Sharding(param_dtype="bfloat16")
    module = SFTModule(STUDENT, sharding=sharding, gradient_checkpointing=True, micro_batch_tokens=300)
    plan = planned(module, strategy=ShardedStrategy())
    held = {item.part: item.bytes for item in plan.memory if item.part is not Part.AT_WORK}
    share = load_causal_lm("model", STUDENT, None).num_parameters() / 8
    assert held.keys() == {Part.WEIGHTS, Part.GRADIENTS, Part.MOMENTS}
    for part, size in {Part.WEIGHTS: 4 * share, Part.GRADIENTS: 4 * share, Part.MOMENTS: 8 * share}.items():
        assert held[part] == pytest.approx(size, rel=0.05), part  # not every parameter is a multiple of 8
    phases = {item.when: item.bytes for item in plan.memory if item.part is Part.AT_WORK}
    assert {Moment.FORWARD, Moment.BACKWARD} <= phases.keys()
    assert plan.peak == pytest.approx(sum(held.values()) + max(phases.values()))
    assert plan.step.num_prompts == 8 * data().batch_size


@pytest.mark.parametrize("layout", [PaddedRows(), PackedRow()])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_forward_loss_and_backward_hold_what_a_plan_says(layout: Layout, checkpointing: bool) -> None:
    """The same micro-batch on the model itself, its tensors counted one by one."""
    module = SFTModule(STUDENT, gradient_checkpointing=checkpointing, layout=layout, chunk_tokens=100)
    plan = planned(module, devices=1, accelerator="cpu")
    held = {item.when: item.bytes for item in plan.memory if item.part is Part.AT_WORK}
    module.configure_model()
    assert module.supervised is not None
    with LiveBytes() as alive:
        loss = module.supervised([Example([1] * 20, [2] * 80, [2] * 80)] * plan.step.micro_batch)
        forward = alive.forget_peak()
        loss.backward()
    assert plan.step.micro_batch == data().batch_size
    assert plan.step.num_micro_batches == 1  # gradients come with this backward
    # Ids and positions differ by a few bytes a token; they are made by other operators where sizes are all there is.
    assert held[Moment.FORWARD] == pytest.approx(forward, rel=0.02)
    assert held[Moment.BACKWARD] == pytest.approx(alive.most, rel=0.02)


def test_what_is_offloaded_or_kept_whole() -> None:
    offloaded = SFTModule(STUDENT, sharding=Sharding(cpu_offload=True))
    parts = {item.part for item in planned(offloaded, strategy=ShardedStrategy()).memory}
    assert parts.isdisjoint({Part.WEIGHTS, Part.GRADIENTS, Part.MOMENTS})
    plain = {item.part: item for item in planned(SFTModule(STUDENT, micro_batch_tokens=100), devices=2).memory}
    assert plain[Part.MOMENTS].bytes == pytest.approx(2 * plain[Part.BUCKETS].bytes, rel=0.01)
    assert plain[Part.GRADIENTS].bytes == pytest.approx(plain[Part.BUCKETS].bytes, rel=0.01)
    assert plain[Part.GRADIENTS].when is Moment.TRAINING


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
    loads = ["--model.init_args.from_scratch", "false"]
    assert run(["fit", "--recipe", "quickstart_student", *loads, "--dry_run"]) == 0
    printed = capsys.readouterr().out
    assert "Supervised fine-tuning" in printed
    assert "student backward" in printed
    assert not list(tmp_path.iterdir())


def test_a_preflight_needs_a_pair() -> None:
    cli = open_recipes(["fit", "--recipe", "quickstart_student"], PlanningCLI)
    with pytest.raises(RecipeError, match="SFTModule; expected a DistillModule"):
        plan_run(cli, None)
