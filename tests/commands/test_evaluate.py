"""`evaluate` and `test` by the command line on the embedded pair; the first time in a process of its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from mlflow import MlflowClient

from simct_pl.commands.main import main
from tests import warm
from tests.evaluation.samples import write_jsonl
from tests.tiny import ASSETS

GSM8K_LIKE = [{"question": "1+2+3?", "answer": "It is\n#### 6"}, {"question": "4+4+9?", "answer": "It is\n#### 17"}]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty one to work in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def options(tmp_path: Path, **changes: str) -> list[str]:
    path = write_jsonl(tmp_path / "gsm8k.jsonl", GSM8K_LIKE)
    values = {
        "model": str(ASSETS / "student"),
        "benchmarks": f"[{{class_path: GSM8K, init_args: {{path: {path}}}}}, ArithmeticBenchmark]",
        "protocol.num_seeds": "2",
        "protocol.limit": "20",
        "protocol.max_tokens": "24",
        "dtype": "float32",
    }
    return [f"--{name}={value}" for name, value in {**values, **changes}.items()]


def test_evaluate_scores_a_folder_and_goes_on_where_it_was(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = warm.run(["simct_pl", "evaluate", *options(folder)], folder, MLFLOW_TRACKING_URI=None)
    assert done.returncode == 0, done.stderr
    results = folder / "runs/evaluation/student"
    summary = {result["benchmark"]: result for result in json.loads((results / "summary.json").read_text())}
    assert {name: (r["num_problems"], r["num_seeds"]) for name, r in summary.items()} == {
        "gsm8k": (2, 2),
        "arithmetic": (20, 2),
    }
    assert summary["gsm8k"]["reasons"] == {"no_answer": 4}  # this student has never seen a box
    assert 0.3 < summary["arithmetic"]["accuracy"] < 1
    assert "95 % interval" in done.stdout
    assert "arithmetic" in done.stdout
    lines = [json.loads(line) for line in (results / "arithmetic/items-0.jsonl").read_text().splitlines()]
    assert len(lines) == 40
    assert sum(line["score"] for line in lines) / 40 == pytest.approx(summary["arithmetic"]["accuracy"])
    client = MlflowClient(f"sqlite:///{folder}/runs/mlflow.db")
    [run] = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    assert run.data.metrics["eval/arithmetic/accuracy"] == pytest.approx(summary["arithmetic"]["accuracy"])

    before = (results / "arithmetic/items-0.jsonl").read_bytes()
    assert main(["evaluate", *options(folder)]) == 0
    assert (results / "arithmetic/items-0.jsonl").read_bytes() == before
    assert main(["evaluate", *options(folder, dtype="bfloat16")]) == 2
    assert "dtype = 'float32'; this run has 'bfloat16'" in capsys.readouterr().err.replace("\n", " ")
    assert (results / "arithmetic/items-0.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "nowhere/at/all"}, "does not exist"),
        ({"model": "${asset:quickstart/nobody}"}, "quickstart/nobody' does not exist"),
        ({"model": "${oc.env:NOT_SET_ANYWHERE}"}, "A value cannot be interpolated"),
        ({"benchmarks": "[GSM8k]"}, "GSM8k"),
        ({"benchmarks": "[{class_path: GSM8K, init_args: {path: nothing.jsonl}}]"}, "nothing.jsonl"),
        ({"protocol.max_tokens": "120"}, "Lower max_tokens"),
        ({"protocol.num_seeds": "0"}, "num_seeds is 0"),
    ],
)
def test_what_cannot_be_scored_is_refused_on_one_screen(
    folder: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, str], message: str
) -> None:
    assert main(["evaluate", *options(folder, **changes)]) == 2
    assert message in capsys.readouterr().err
    assert not (folder / "runs").exists()


def test_test_scores_the_student_of_a_recipe(folder: Path) -> None:
    overlay = folder / "small.yaml"
    overlay.write_text(
        "trainer:\n  callbacks+:\n    - class_path: callbacks.BenchmarkCallback\n      init_args:\n"
        "        benchmarks: [simct_pl.tasks.benchmark.ArithmeticBenchmark]\n"
        "        test_protocol: {num_seeds: 2, limit: 20}\n"
    )
    assert main(["test", "--recipe", "quickstart", "--recipe", str(overlay)]) == 0
    [result] = json.loads((folder / "runs/quickstart+small/benchmarks/test/summary.json").read_text())
    changes = {"benchmarks": "[ArithmeticBenchmark]", "protocol.max_tokens": "40"}
    assert main(["evaluate", *options(folder, **changes)]) == 0
    [same] = json.loads((folder / "runs/evaluation/student/summary.json").read_text())
    assert result == same


def test_test_needs_benchmarks(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["test", "--recipe", "quickstart"]) == 2
    assert "--recipe benchmarks" in capsys.readouterr().err
