"""The report on a small store with numbers that can be worked out by hand."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
from mlflow import MlflowClient

from simct_pl.commands.report import main
from simct_pl.errors import RecipeError, TrackingError
from simct_pl.lab.compare import Estimate, compare
from simct_pl.lab.page import verdict
from simct_pl.lab.results import SweepResults, load_results

# method -> seed -> accuracy at step 0 and at step 10
ACCURACY = {
    "poor": {0: (0.5, 0.50), 1: (0.5, 0.60), 2: (0.5, 0.40)},
    "good": {0: (0.5, 0.70), 1: (0.5, 0.90), 2: (0.5, 0.65)},
    "best": {0: (0.4, 0.90), 1: (0.4, 0.90)},
}
T_2, T_1 = 4.30265, 12.7062  # quantiles of Student's t at 97.5 %, two degrees of freedom and one


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("store")
    uri = f"sqlite:///{folder}/mlflow.db"
    client = MlflowClient(uri)
    experiment = client.create_experiment("simct_pl", (folder / "artifacts").as_uri())
    parent = client.create_run(experiment, run_name="small", tags={"simct.sweep": "small"}).info.run_id
    client.log_text(parent, "name: small # the file\n", "small.yaml")

    def add(method: str, seed: int, values: tuple[float, float], status: str = "FINISHED") -> None:
        tags = {"mlflow.parentRunId": parent, "simct.method": method, "simct.seed": str(seed)}
        tags["simct.cell"] = f"{method}, seed {seed}"
        run = client.create_run(experiment, tags=tags).info.run_id
        for step, value in zip((0, 10), values, strict=True):
            client.log_metric(run, "eval/accuracy", value, step=step)
            client.log_metric(run, "rollout/response_tokens", 20 + step, step=step)
        for name in ("align/coverage", "align/supervised_tokens", "align/units_1_1"):
            client.log_metric(run, name, 0.75, step=10)
        client.set_terminated(run, status)

    for method, seeds in ACCURACY.items():
        for seed, values in seeds.items():
            add(method, seed, (0.0, 0.0))  # an earlier attempt, which the next one replaces
            add(method, seed, values)
    add("best", 2, (0.4, 0.1), "FAILED")
    add("good", 0, (0.0, 0.0), "FAILED")  # newer, but the finished one counts
    return uri


@pytest.fixture(scope="module")
def results(uri: str) -> SweepResults:
    return load_results("small", uri, "eval/accuracy")


def test_means_intervals_differences_and_shares_are_those_worked_out_by_hand(results: SweepResults) -> None:
    best, good, poor = compare(results, "eval/accuracy", "poor", "best", lower_is_better=False)
    assert [one.method for one in (best, good, poor)] == ["best", "good", "poor"]
    assert poor.final.mean == pytest.approx(0.5)
    assert poor.final.half_width == pytest.approx(T_2 * 0.1 / math.sqrt(3), rel=1e-5)
    assert good.start.mean == 0.5
    assert good.difference is not None
    assert good.difference.mean == pytest.approx((0.2 + 0.3 + 0.25) / 3)  # seed by seed
    assert good.difference.half_width == pytest.approx(T_2 * 0.05 / math.sqrt(3), rel=1e-5)
    assert good.difference.excludes_zero
    assert good.recovered is not None
    assert good.recovered.num_seeds == 2  # the upper bound's third seed failed
    assert good.recovered.mean == pytest.approx((0.2 / 0.5 + 0.4 / 0.5) / 2)
    assert good.recovered.half_width == pytest.approx(T_1 * math.sqrt(0.08) / math.sqrt(2), rel=1e-5)
    assert poor.difference is None
    assert best.final.half_width == 0.0


def test_a_cell_that_has_not_finished_is_named(results: SweepResults) -> None:
    assert results.missing == ["best, seed 2"]


def test_one_seed_has_no_interval() -> None:
    import pandas as pd

    one = Estimate.of(pd.Series([0.3]))
    assert (one.mean, one.num_seeds, one.excludes_zero) == (0.3, 1, False)
    assert math.isnan(one.half_width)


def test_the_verdict_says_whether_intervals_overlap(results: SweepResults) -> None:
    compared = compare(results, "eval/accuracy", None, None, lower_is_better=False)
    assert verdict(compared).startswith("best has the best mean, but")
    assert verdict(compared[:1]) == "best is the only method."


def test_the_page_stands_alone(uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--sweep", "small", "--tracking-uri", uri, "--output", str(tmp_path), "--baseline", "poor"]
    assert main([*options, "--upper", "best"]) == 0
    page = (tmp_path / "report.html").read_text()
    assert not re.findall(r"(?:src|href)=\"(?!data:)", page)
    assert page.count("data:image/png;base64,") == 4
    assert "best, seed 2" in page
    assert "# the file" in page
    text = (tmp_path / "report.md").read_text()
    assert "| good | 3 | 50.0 % | 75.0 % ± 32.9 | +25.0 % ± 12.4 * | 60.0 % ± 254.1 |" in text
    assert {path.name for path in tmp_path.glob("*.png")} == {"final.png", "curves.png", "diagnostics.png", "units.png"}
    assert "good" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (["--sweep", "large"], TrackingError, "has no sweep 'large'"),
        (["--sweep", "small", "--metric", "eval/accurcy"], TrackingError, "eval/accuracy"),
        (["--sweep", "small", "--metric", "accuracy"], RecipeError, "expected a metric"),
        (["--sweep", "small", "--baseline", "god"], RecipeError, "Did you mean 'good'"),
    ],
)
def test_what_is_not_there_is_said(
    uri: str, tmp_path: Path, options: list[str], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        main([*options, "--tracking-uri", uri, "--output", str(tmp_path)])
