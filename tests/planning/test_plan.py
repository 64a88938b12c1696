"""What a plan reads from a recipe; samples and lengths; what stops a dry run."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import Gemma3TextConfig, Qwen3Config
from typing_extensions import override

from callbacks import RolloutCallback
from simct_pl import SimCTLoss
from simct_pl.commands import dry_run, preflight
from simct_pl.commands.trainer import run
from simct_pl.config.lightning_cli import open_recipes
from simct_pl.data.prompts import PromptDataModule
from simct_pl.data.source import PromptSource
from simct_pl.errors import PromptDataError, RecipeError, RolloutError
from simct_pl.losses.base import UnitChunk, UnitLosses
from simct_pl.models.loading import load_config
from simct_pl.models.sharding import ShardedStrategy, Sharding
from simct_pl.planning.deployment import Deployment
from simct_pl.planning.memory import PHASE_OF, Moment, Part, items_beside, rehearsed_items
from simct_pl.planning.plan import Plan, make_plan, trained_shape
from simct_pl.planning.rehearsing import rehearse_recipe
from simct_pl.planning.run import PlanningCLI, plan_run
from simct_pl.planning.samples import Lengths, measure_lengths, read_samples
from simct_pl.planning.step import StepShape
from simct_pl.planning.words import parameters_of
from simct_pl.rollout.engine import SamplingParams
from simct_pl.rollout.vllm import VLLMEngine
from simct_pl.training.lesson import TeacherSettings
from simct_pl.training.teacher_server import TeacherServer
from tests.planning.test_deployment import settings
from tests.tiny import ASSETS, data, unloaded_module

TEXTS = ("1+2= 3, 3+3= 6, total 6", "total 7")
LENGTHS = Lengths(student_prompt=20, teacher_prompt=18, response=32.0, teacher_share=1.25, texts=TEXTS)


def held(plan: Plan) -> dict[Part, float]:
    return {item.part: item.bytes for item in plan.memory}


def parameters(role: str) -> int:
    """Counted in the files."""
    with safe_open(ASSETS / role / "model.safetensors", "pt") as file:
        return sum(file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118 - no dictionary


def test_a_plan_is_of_the_step_that_the_recipe_names() -> None:
    module = unloaded_module(
        gradient_checkpointing=True, sharding=Sharding(param_dtype="bfloat16"), teacher_dtype="bfloat16"
    )
    rollouts = RolloutCallback(SamplingParams(max_tokens=64), num_samples=2)
    rollouts.engine.placement = "server"
    deployment = Deployment.of(settings(strategy=ShardedStrategy()), "h100")
    plan = make_plan(module, data(), rollouts, deployment, LENGTHS)
    assert plan.step == StepShape(4 * 8, 2, 20, 64, 80, checkpointing=True, engine="server")
    ledger = rehearse_recipe(module, module.first_lesson, plan.step, LENGTHS, lambda _: None)
    assert plan.memory == rehearsed_items(ledger, plan.step) + items_beside(plan.sizes["student"], 0, plan.step)
    assert {item.when for item in plan.memory} >= {*PHASE_OF.values()} - {Moment.OPTIMIZER}
    assert {role: size.parameters for role, size in plan.sizes.items()} == {
        role: parameters(role) for role in ("student", "teacher")
    }
    assert plan.why_not == ()


def test_memory_follows_what_the_recipe_keeps_where() -> None:
    deployment = Deployment.of(settings(devices=2, strategy=ShardedStrategy()), "h100")

    def planned(sharding: Sharding, teacher_dtype: str = "bfloat16", **callback: object) -> dict[Part, float]:
        module = unloaded_module(sharding=sharding, teacher_dtype=teacher_dtype)
        return held(make_plan(module, data(), RolloutCallback(**callback), deployment, LENGTHS))  # type: ignore[arg-type]

    plain = planned(Sharding())  # all in fp32 but the teacher
    whole, taught = parameters("student"), parameters("teacher")
    assert plain[Part.TEACHER_WEIGHTS] == pytest.approx(2 * taught, rel=0.01)  # and what is no parameter
    assert planned(Sharding(), "float32")[Part.TEACHER_WEIGHTS] == pytest.approx(4 * taught, rel=0.01)
    assert plain[Part.ENGINE_WEIGHTS] == 4 * whole  # HFEngine's copy of a sharded student
    assert plain[Part.MOMENTS] == pytest.approx(8 * whole / 2, rel=0.01)
    assert planned(Sharding(cpu_offload=True)).keys().isdisjoint({Part.WEIGHTS, Part.GRADIENTS, Part.MOMENTS})
    reserved = planned(Sharding(), engine=VLLMEngine(gpu_memory_utilization=0.25))
    assert reserved[Part.ENGINE_RESERVED] == 0.25 * 80e9
    assert Part.ENGINE_WEIGHTS not in reserved


LORA = {"r": 4, "target_modules": "all-linear"}


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("rehearsed", [True, False])
def test_a_frozen_base_has_no_gradients_and_no_moments(rehearsed: bool, ranks: int) -> None:
    sharded = {"sharding": Sharding()} if ranks > 1 else {}
    objective = SimCTLoss("sum_logprob", "marginal") if rehearsed else ByValue()
    module = unloaded_module(lora=LORA, objective=objective, **sharded)
    strategy = ShardedStrategy() if sharded else "auto"
    deployment = Deployment.of(settings(devices=ranks, strategy=strategy), "h100")
    plan = make_plan(module, data(batch_size=64), RolloutCallback(), deployment, LENGTHS)
    assert bool(plan.why_not) != rehearsed
    base = parameters("student")
    share = module.lora.check(load_config("student", module.student_path), "float32") if module.lora else None
    assert share is not None
    assert share.all - share.trained == base
    size = plan.sizes["student"]
    assert (size.parameters, size.trained) == (share.all, share.trained)
    # Of matrices with 4 rows, each of two ranks has two.
    assert held(plan)[Part.FROZEN] == pytest.approx(4 * base / ranks, rel=0.02)
    assert held(plan)[Part.WEIGHTS] == pytest.approx(4 * share.trained / ranks, rel=0.02)
    assert held(plan)[Part.MOMENTS] == pytest.approx(8 * share.trained / ranks, rel=0.02)
    assert parameters_of(size) == f"{share.all / 1e6:.2f} M, {share.trained / share.all:.2%} trained"
    assert held(plan).get(Part.GRADIENTS, 0) <= 4 * share.trained / ranks * 1.02


def test_the_anchor_of_adapters_costs_no_weights() -> None:
    deployment = Deployment.of(settings(devices=1), "h100")

    def planned(**overrides: object) -> dict[Part, float]:
        module = unloaded_module(anchor_weight=1.0, **overrides)
        return held(make_plan(module, data(), RolloutCallback(), deployment, LENGTHS))

    assert Part.ANCHOR_WEIGHTS in planned()
    assert Part.ANCHOR_WEIGHTS not in planned(lora=LORA)
    assert Part.ANCHOR_WEIGHTS in planned(lora={**LORA, "modules_to_save": ["norm"]})


def test_a_teacher_of_four_bits_takes_that_much() -> None:
    """Planned on a machine without the package, whose recipe is not checked here."""
    deployment = Deployment.of(settings(devices=1), "h100")

    def planned(**overrides: object) -> Plan:
        module = unloaded_module(teacher_dtype="bfloat16", **overrides)
        return make_plan(module, data(), RolloutCallback(), deployment, LENGTHS)

    whole, packed = planned(), planned(teacher_kwargs={"quantization_config": {"load_in_4bit": True}})
    blocks = sum(whole.sizes["teacher"].blocks)
    saved = held(whole)[Part.TEACHER_WEIGHTS] - held(packed)[Part.TEACHER_WEIGHTS]
    assert saved == pytest.approx(blocks * (2 - 4.5 / 8))


class Spendthrift(SimCTLoss):
    """Makes a table that nobody needs."""

    @override
    def __call__(self, chunk: UnitChunk) -> UnitLosses:
        losses = super().__call__(chunk)
        wasted = chunk.student_logits_NK.new_zeros(10**9, dtype=torch.float32)
        return UnitLosses.over_everything(losses.loss_U + wasted[0], losses.supervised_U)


def test_the_objective_of_the_recipe_is_what_is_planned() -> None:
    """A loss that takes 4 GB more has a plan with 4 GB more; no formula knows of it."""
    deployment = Deployment.of(settings(), "h100")
    plain, wasteful = (
        make_plan(unloaded_module(objective=objective), data(), RolloutCallback(), deployment, LENGTHS).peak
        for objective in (SimCTLoss("sum_logprob", "marginal"), Spendthrift("sum_logprob", "marginal"))
    )
    assert wasteful - plain == pytest.approx(4e9, rel=0.01)


class ByValue(SimCTLoss):
    """Decides by a number what it computes."""

    @override
    def __call__(self, chunk: UnitChunk) -> UnitLosses:
        losses = super().__call__(chunk)
        return losses if losses.loss_U.max() > 1 else super().__call__(chunk)


def test_what_cannot_be_rehearsed_is_said_and_weights_are_counted() -> None:
    module = unloaded_module(objective=ByValue())
    plan = make_plan(module, data(), RolloutCallback(), Deployment.of(settings(devices=1), "h100"), LENGTHS)
    assert any("decides by values" in why for why in plan.why_not)
    assert held(plan)[Part.WEIGHTS] == 4 * parameters("student")
    assert Part.AT_WORK not in held(plan)


@pytest.mark.parametrize(
    ("precision", "sharding", "expected"),
    [
        ("32-true", None, (torch.float32, torch.float32, torch.float32)),
        ("bf16-mixed", None, (torch.float32, torch.float32, torch.bfloat16)),
        ("bf16-true", None, (torch.bfloat16, torch.bfloat16, torch.bfloat16)),
        ("32-true", Sharding(param_dtype="bfloat16"), (torch.float32, torch.bfloat16, torch.bfloat16)),
    ],
)
def test_weights_and_products_are_of_the_dtypes_that_the_recipe_says(
    precision: str, sharding: Sharding | None, expected: tuple[torch.dtype, ...]
) -> None:
    strategy = "auto" if sharding is None else ShardedStrategy()
    deployment = Deployment.of(settings(precision=precision, strategy=strategy), "h100")
    step = trained_shape(unloaded_module(sharding=sharding), "float32", 4, deployment)
    assert (step.dtype, step.param_dtype, step.product_dtype) == expected


def test_a_peak_beyond_the_memory_is_refused() -> None:
    plan = make_plan(unloaded_module(), data(), RolloutCallback(), Deployment.of(settings(), "h100"), LENGTHS)
    dry_run.check_memory(plan)
    too_small = replace(plan, memory=[replace(plan.memory[0], bytes=81e9, when=Moment.ALWAYS)])
    with pytest.raises(RecipeError, match=r"81\.0 GB and has 80\.0 GB"):
        dry_run.check_memory(too_small)


# ---- samples ----


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text(
        '{"prompt": "left out", "domain": "none"}\n'
        '{"prompt": "1+2+3?", "answer": "1+2= 3, 3+3= 6, total 6", "domain": "maths"}\n'
        '{"prompt": "total?", "answer": "total 7", "domain": ""}\n'
    )
    return path


def test_samples_keep_their_domains_and_system_prompts(file: Path) -> None:
    source = PromptSource(str(file), response_field="answer", skip=1)
    module = PromptDataModule(PromptSource(str(file)), val=source, system_prompt="Add.", teacher_system_prompt="Teach.")
    maths, other = read_samples(module, 10)
    assert (maths.domain, other.domain) == ("maths", "all")
    assert maths.prompt.response == "1+2= 3, 3+3= 6, total 6"
    assert maths.prompt.messages[0]["content"] == "Add."
    assert maths.prompt.teacher_messages is not None
    assert maths.prompt.teacher_messages[0]["content"] == "Teach."
    assert [one.prompt.index for one in read_samples(PromptDataModule(PromptSource(str(file))), 2)] == [0, 1]


def test_held_out_answers_may_end_conversations(file: Path, tmp_path: Path) -> None:
    """Reference responses without a field of their own; held-out rows without any are left to training's."""
    talk = [{"role": "user", "content": "1+2?"}, {"role": "assistant", "content": "3"}]
    held_out = tmp_path / "held_out.jsonl"
    held_out.write_text(json.dumps({"talk": talk}) + "\n")
    train = PromptSource(str(file))
    [sample] = read_samples(PromptDataModule(train, PromptSource(str(held_out), prompt_field="talk")), 2)
    assert sample.prompt.response == "3"
    held_out.write_text(json.dumps({"talk": talk[:1]}) + "\n")
    assert len(read_samples(PromptDataModule(train, PromptSource(str(held_out), prompt_field="talk")), 2)) == 2


def test_a_file_without_prompts_is_refused(file: Path) -> None:
    with pytest.raises(PromptDataError, match="no prompt"):
        read_samples(PromptDataModule(PromptSource(str(file), skip=9)), 4)


def test_teachers_lie_beside_each_other() -> None:
    """The largest is rehearsed; of the others the weights are there, and a gradient of the head for each."""
    rollouts, deployment = RolloutCallback(SamplingParams(max_tokens=64)), Deployment.of(settings(), "h100")
    paths = {
        "large": str(ASSETS / "teacher"),
        "small": str(ASSETS / "student"),
        "far": str(ASSETS / "two_digit_teacher"),
    }
    teachers = {name: TeacherSettings(path, dtype="float32") for name, path in paths.items()}
    server = TeacherServer("http://127.0.0.1:9", key_variable=None, retries=0)
    teachers |= {"small": replace(teachers["small"], dtype="bfloat16"), "far": replace(teachers["far"], server=server)}
    several = make_plan(unloaded_module(teacher=None, teachers=teachers), data(), rollouts, deployment, LENGTHS)
    alone = make_plan(unloaded_module(), data(), rollouts, deployment, LENGTHS)
    weights = [item.bytes for item in several.memory if item.part is Part.TEACHER_WEIGHTS]
    assert weights == [held(alone)[Part.TEACHER_WEIGHTS], 2 * parameters("student")]
    config = json.loads((ASSETS / "student/config.json").read_text())
    assert held(several)[Part.HEADS] == 2 * config["vocab_size"] * config["hidden_size"] * 4
    assert Part.HEADS not in held(alone)
    assert several.sizes.keys() == {"student", "large", "small", "far"}


def test_lengths_are_counted_in_tokens(file: Path) -> None:
    pair = unloaded_module().pair
    source = PromptSource(str(file), response_field="answer", skip=1, limit=1)
    lengths = measure_lengths([pair], read_samples(PromptDataModule(source), 4))
    text = "1+2= 3, 3+3= 6, total 6"
    student, teacher = len(pair.student.encode(text)), len(pair.teacher.encode(text))
    assert lengths.response == student
    assert lengths.teacher_share == teacher / student
    messages = [{"role": "user", "content": "1+2+3?"}]
    assert lengths.student_prompt == len(pair.student.render_prompt(messages))
    assert lengths.teacher_prompt == len(pair.teacher.render_prompt(messages))
    assert lengths.longest_prompt == max(lengths.student_prompt, lengths.teacher_prompt)


def test_a_long_prompt_of_the_teachers_is_no_trouble_of_the_student(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The student has a context of 128 tokens; only the teacher reads the system prompt."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.jsonl").write_text('{"prompt": "1+2+3?"}\n')
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        "data:\n  class_path: simct_pl.PromptDataModule\n  init_args:\n    batch_size: 1\n"
        f"    train: {{path: {tmp_path / 'p.jsonl'}}}\n    teacher_system_prompt: {'1 2 ' * 30}\n"
    )
    arguments = ["fit", "--recipe", "quickstart", "--recipe", str(recipe)]
    planned = plan_run(open_recipes(arguments, PlanningCLI), None)
    assert planned.lengths.student_prompt < 20 < 60 < planned.lengths.teacher_prompt
    assert planned.lengths.teacher_prompt + planned.rollouts.sampling.max_tokens > 128
    dry_run.check_context(planned)
    context = planned.module.student_context
    assert context == 128
    too_long = replace(planned, lengths=replace(planned.lengths, student_prompt=context))
    with pytest.raises(PromptDataError, match="exceed the student's context of 128"):
        dry_run.check_context(too_long)


# ---- the command ----


def test_a_dry_run_loads_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("simct_pl.models.read_once.load_causal_lm", lambda *_: pytest.fail("weights were loaded"))
    assert run(["fit", "--recipe", "quickstart", "--dry_run"]) == 0
    printed = capsys.readouterr().out
    for expected in ("llama", "64 prompts × 1 a step", "TokenConditionalLoss", "Nothing was loaded"):
        assert expected in printed
    assert list(tmp_path.iterdir()) == []


def test_a_pair_of_other_architectures_is_planned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A Qwen3 student under a Gemma-3 teacher with sliding windows, by command: plan and preflight."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    for role, kind in (("student", Qwen3Config), ("teacher", Gemma3TextConfig)):
        shutil.copytree(ASSETS / role, tmp_path / role)
        stops = {name: load_config(role, str(ASSETS / role)).to_dict()[name] for name in ("vocab_size", "eos_token_id")}
        kind(**shape, **stops, num_key_value_heads=1, head_dim=16, sliding_window=8).save_pretrained(tmp_path / role)
    named = [f"--model.init_args.{role}={tmp_path / role}" for role in ("student", "teacher")]
    assert run(["fit", "--recipe", "quickstart", *named, "--dry_run"]) == 0
    assert preflight.main(["--recipe", "quickstart", *named, "--score", "false", "--num_prompts", "8"]) == 0
    printed = capsys.readouterr().out
    for expected in ("qwen3", "gemma3_text", Part.MOMENTS.value, Part.TEACHER_WEIGHTS.value, Part.ENGINE_CACHE.value):
        assert printed.count(f" {expected} ") == 2, expected
    assert "Missing" not in printed
    assert "Verdict: go" in printed


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (["--trainer.callbacks=[callbacks.AlignmentStats]", "--dry_run"], RolloutError, "Nobody generates rollouts"),
        (["--dry_run=b200", "--trainer.accelerator=gpu"], RecipeError, "b200"),
    ],
)
def test_what_would_stop_the_run_stops_the_dry_run(
    arguments: list[str], error: type[Exception], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=words):
        run(["fit", "--recipe", "quickstart", *arguments])


def test_only_a_fit_can_be_planned() -> None:
    with pytest.raises(RecipeError, match="--dry_run goes with fit"):
        run(["validate", "--recipe", "quickstart", "--dry_run"])
