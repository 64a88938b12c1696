"""A real `fit` through the command line, in a fresh interpreter: what a user gets, file by file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import matplotlib.image
import mlflow
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from simct_pl.config.recipes import PACKAGE
from tests import warm

NUM_STEPS = 4


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """(folder, output) of a quickstart cut to a few steps."""
    folder = tmp_path_factory.mktemp("fit")
    command = [
        *(sys.executable, "-m", "simct_pl", "quickstart"),
        *(f"--trainer.max_steps={NUM_STEPS}", "--trainer.val_check_interval=2"),
        *("--data.init_args.num_val_prompts=8", "--data.init_args.batch_size=8"),
    ]
    environment = warm.environment_of(MLFLOW_TRACKING_URI=None)
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_the_summary_says_what_happened_and_where_to_look(finished: tuple[Path, str]) -> None:
    _, output = finished
    for expected in (
        "step 0",
        f"step {NUM_STEPS}",
        "eval/accuracy",
        "Sample answers",
        "Shared vocabulary: ",
        "mlflow ui",
    ):
        assert expected in output


def test_the_exported_folder_loads_generates_and_was_trained(finished: tuple[Path, str]) -> None:
    folder = finished[0] / "runs/quickstart/student"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    before = AutoModelForCausalLM.from_pretrained(PACKAGE / "assets/quickstart/student")
    assert not torch.equal(model.model.embed_tokens.weight, before.model.embed_tokens.weight)
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "3+4+5?"}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    text = tokenizer.decode(model.generate(**ids, max_new_tokens=40)[0, ids["input_ids"].shape[1] :])
    assert text.startswith("3+4= ")
    assert text.endswith("</turn>")
    for name in ("tokenizer.json", "chat_template.jinja"):
        assert (folder / name).read_bytes() == (PACKAGE / "assets/quickstart/student" / name).read_bytes()
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id


def test_the_tracker_has_metrics_recipe_and_samples(finished: tuple[Path, str]) -> None:
    folder = finished[0]
    client = mlflow.MlflowClient(f"sqlite:///{folder}/runs/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("simct_pl").experiment_id])
    assert run.info.run_name == "quickstart"
    assert run.info.status == "FINISHED"
    assert {name.split("/")[0] for name in run.data.metrics} >= {"loss", "align", "rollout", "policy", "optim", "eval"}
    assert [point.value for point in client.get_metric_history(run.info.run_id, "policy/lag")] == [0.0] * NUM_STEPS
    assert max(p.value for p in client.get_metric_history(run.info.run_id, "policy/mismatch_p99")) < 1e-4
    assert run.data.metrics["align/coverage"] == 1.0
    assert run.data.params["variant/objective"] == "TokenConditionalLoss"
    assert run.data.params["variant/divergence"] == "jsd"
    artifacts = {artifact.path for artifact in client.list_artifacts(run.info.run_id)}
    assert artifacts >= {"recipe.yaml", "samples.json", "learning_curve.png"}
    assert [point.step for point in client.get_metric_history(run.info.run_id, "eval/accuracy")] == [0, 2, 4]


def test_the_learning_curve_is_a_picture(finished: tuple[Path, str]) -> None:
    picture = matplotlib.image.imread(finished[0] / "runs/quickstart/learning_curve.png")
    assert picture.shape[0] > 400
    assert picture.shape[1] > 800
    assert picture.std() > 0.05


def test_the_written_recipe_runs_again_to_the_same_weights(finished: tuple[Path, str], tmp_path: Path) -> None:
    recipe = str(finished[0] / "runs/quickstart/recipe.yaml")
    done = warm.run(["simct_pl", "fit", "--recipe", recipe], tmp_path, MLFLOW_TRACKING_URI=None)
    assert done.returncode == 0, done.stderr
    first, again = (
        AutoModelForCausalLM.from_pretrained(root / "runs/quickstart/student").state_dict()
        for root in (finished[0], tmp_path)
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
