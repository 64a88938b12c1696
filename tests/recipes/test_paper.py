"""The paper's recipes: what they set, planned for each pair, and one of them trained, with tiny models."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from simct_pl.commands.trainer import run
from simct_pl.config.lightning_cli import open_recipes
from simct_pl.config.recipes import find_recipe
from simct_pl.planning.run import PlannedRun, PlanningCLI, plan_run
from tests import warm
from tests.recipes.tiny_paper import make_models

PAIRS = {
    "qwen7b_gemma2b": ("google/gemma-2-2b-it", "Qwen/Qwen2.5-7B-Instruct"),
    "qwen7b_phi4mini": ("microsoft/Phi-4-mini-instruct", "Qwen/Qwen2.5-7B-Instruct"),
    "phi4mini_gemma2b": ("google/gemma-2-2b-it", "microsoft/Phi-4-mini-instruct"),
}
SOURCES = {"table4": ["table4"], "released": ["table4", "released"]}
PROMPT = '{"messages": [{"role": "user", "content": "What is %d + %d?"}], "domain": "maths"}\n'
ON_CPU = """
trainer:
  accelerator: cpu
  devices: 1
  max_steps: 2
  logger: false
  callbacks:
    - class_path: callbacks.RolloutCallback
      init_args:
        sampling: {temperature: 0.6, top_p: 0.95, max_tokens: 8}
    - callbacks.AlignmentStats
    - callbacks.CollapseGuard
    - class_path: callbacks.HFExport
      init_args: {output: student}
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_models(tmp_path_factory.mktemp("paper"))


@pytest.fixture
def prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A prompt file, and the folder that the command runs in."""
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(PROMPT % (i, i) for i in range(8)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PAPER_PROMPTS", str(file))
    monkeypatch.setenv("COLUMNS", "160")
    return file


def arguments(source: str, pair: str, models: dict[str, Path]) -> list[str]:
    student, teacher = PAIRS[pair]
    recipes = [f"--recipe=paper/{name}" for name in [*SOURCES[source], pair]]
    named = (("student", student), ("teacher", teacher))
    return ["fit", *recipes, *(f"--model.init_args.{role}={models[name]}" for role, name in named)]


@pytest.mark.parametrize("pair", PAIRS)
def test_a_pair_names_the_papers_models(pair: str) -> None:
    (content,) = yaml.safe_load(find_recipe(f"paper/{pair}").read_text(encoding="utf-8")).values()
    assert content == {"init_args": dict(zip(("student", "teacher"), PAIRS[pair], strict=True))}


def planned(source: str, models: dict[str, Path], *further: str) -> PlannedRun:
    cli = open_recipes([*arguments(source, "qwen7b_gemma2b", models), *further], PlanningCLI)
    return plan_run(cli, None)


def test_the_settings_are_those_of_table_4(models: dict[str, Path], prompts: Path) -> None:
    run = planned("table4", models)
    assert run.plan.step.num_prompts == 64
    assert run.plan.deployment.max_steps == 10_000 * 2 // 64
    assert (run.rollouts.sampling.temperature, run.rollouts.sampling.top_p) == (0.6, 0.95)
    assert run.rollouts.sampling.max_tokens == 4096
    optimizer = run.module.optimizer_config
    assert (optimizer.lr, optimizer.betas, optimizer.min_lr) == (1e-6, (0.9, 0.98), 1e-8)
    assert run.module.objective.describe()["score"] == "mean_logprob"
    assert run.module.objective.describe()["prefix"] == "keep"


def test_the_released_scripts_differ_where_they_do(models: dict[str, Path], prompts: Path) -> None:
    run = planned("released", models)
    assert run.plan.deployment.max_steps == 10_000 // 64
    assert (run.rollouts.sampling.temperature, run.rollouts.sampling.top_p) == (0.6, 1.0)
    optimizer = run.module.optimizer_config
    assert (optimizer.lr, optimizer.betas, optimizer.min_lr) == (5e-7, (0.9, 0.98), 1e-8)
    assert run.module.objective.describe()["score"] == "mean_logit"


def test_our_objective_is_one_overlay_away(models: dict[str, Path], prompts: Path) -> None:
    run = planned("table4", models, "--recipe=ablations/simct_marginal")
    assert run.module.objective.describe()["prefix"] == "marginal"


@pytest.mark.parametrize("pair", PAIRS)
def test_every_pair_is_planned(
    pair: str, models: dict[str, Path], prompts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*arguments("table4", pair, models), "--dry_run"]) == 0
    printed = capsys.readouterr().out
    assert "8 H100 (assumed: no GPU here)" in printed or torch.cuda.is_available()
    for expected in ("VLLMEngine", "64 prompts × 1 a step", "peak", "student backward", "shared by 8 ranks"):
        assert expected in printed
    architectures = {"Qwen": "qwen2", "google": "gemma2", "microsoft": "phi3"}
    assert all(architectures[name.partition("/")[0]] in printed for name in PAIRS[pair])
    assert sorted(path.name for path in prompts.parent.iterdir()) == ["prompts.jsonl"]  # nothing was written


@pytest.mark.parametrize(
    ("overlay", "student"),
    [
        ("qwen_to_gemma", "google/gemma-2-2b-it"),
        ("qwen_to_phi", "microsoft/Phi-4-mini-instruct"),
        ("phi_to_gemma", "google/gemma-2-2b-it"),
    ],
)
def test_every_warm_up_is_planned(
    overlay: str,
    student: str,
    models: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    content = yaml.safe_load(find_recipe(f"warmup/{overlay}").read_text(encoding="utf-8"))
    assert content["model"]["init_args"]["model"] == student
    selected = tmp_path / "selected.jsonl"
    selected.write_text('{"messages": [{"role": "user", "content": "2 + 2?"}], "response": "It is 4."}\n')
    recipes = ["--recipe", "warmup/sft", "--recipe", f"warmup/{overlay}", "--trainer.devices=8"]
    values = [f"--model.init_args.model={models[student]}", f"--data.init_args.train.path={selected}"]
    assert run(["fit", *recipes, *values, "--dry_run"]) == 0
    printed = capsys.readouterr().out
    for expected in ("64 a step, 8 on each rank, PackedRow", "float32, shared by 8 ranks", "optimizer steps │ 312"):
        assert expected in " ".join(printed.split())


@pytest.mark.slow
def test_table_4_trains_on_the_cpu(models: dict[str, Path], prompts: Path) -> None:
    """FSDP2 in bf16 on one process, a soft-capped student of SentencePiece tokens, a Qwen2 teacher."""
    overlay = prompts.parent / "on_cpu.yaml"
    overlay.write_text(ON_CPU)
    command = [*arguments("table4", "qwen7b_gemma2b", models), f"--recipe={overlay}", "--data.init_args.batch_size=2"]
    done = warm.run(["simct_pl", *command], prompts.parent)
    assert done.returncode == 0, done.stderr
    before = AutoModelForCausalLM.from_pretrained(models["google/gemma-2-2b-it"]).state_dict()
    trained = AutoModelForCausalLM.from_pretrained(prompts.parent / "student")
    assert trained.config.final_logit_softcapping == 30.0
    moved = {name for name, weight in trained.state_dict().items() if not torch.equal(weight, before[name])}
    assert "model.embed_tokens.weight" in moved
    assert any("layers.1" in name for name in moved)
    assert all(bool(torch.isfinite(weight).all()) for weight in trained.state_dict().values())
