"""The report on a small store with numbers that can be worked out by hand."""

from __future__ import annotations

import math
import re
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric
from scipy import stats

from simct_pl.commands.report import main
from simct_pl.errors import RecipeError, TrackingError
from simct_pl.lab.compare import MethodResult, compare
from simct_pl.lab.histories import _ask, _query, read_histories
from simct_pl.lab.results import SweepResults, load_results
from simct_pl.lab.tables import missing_lines

# method -> seed -> accuracy at step 0 and at step 10
ACCURACY = {
    "poor": {0: (0.5, 0.50), 1: (0.5, 0.60), 2: (0.5, 0.40)},
    "good": {0: (0.5, 0.70), 1: (0.5, 0.90), 2: (0.5, 0.65)},
    "best": {0: (0.4, 0.90), 1: (0.4, 0.95)},
}
SWEEP_FILE = """name: small # the file
recipes: [quickstart]
methods: {poor: , good: , best: , idle: }
seeds: [0, 1, 2]
"""
T_2, T_1 = 4.30265, 12.7062  # quantiles of Student's t at 97.5 %, two degrees of freedom and one


@cache
def empty_database() -> bytes:
    """MLflow takes seconds to make one."""
    with TemporaryDirectory() as folder:
        MlflowClient(f"sqlite:///{folder}/mlflow.db").search_experiments()
        return Path(folder, "mlflow.db").read_bytes()


class Store:
    """An MLflow database with one sweep, to which runs can be added."""

    def __init__(self, folder: Path, sweep_file: str = SWEEP_FILE) -> None:
        (folder / "mlflow.db").write_bytes(empty_database())
        self.uri = f"sqlite:///{folder}/mlflow.db"
        self.client = MlflowClient(self.uri)
        self.experiment = self.client.create_experiment("simct_pl", (folder / "artifacts").as_uri())
        self.parent = self.client.create_run(self.experiment, tags={"simct.sweep": "small"}).info.run_id
        self.client.log_text(self.parent, sweep_file, "small.yaml")

    def add(
        self, method: str, seed: int, accuracies: dict[int, float], status: str = "FINISHED", **shares: float
    ) -> str:
        """A run with accuracies by step; shares: of metrics in the group `align`, at each of these steps."""
        tags = {"mlflow.parentRunId": self.parent, "simct.method": method, "simct.seed": str(seed)}
        tags["simct.cell"] = f"{method}, seed {seed}"
        run: str = self.client.create_run(self.experiment, tags=tags).info.run_id
        values = [
            (name, value, step)
            for step, accuracy in accuracies.items()
            for name, value in {
                "eval/accuracy": accuracy,
                "timing/step_seconds": 0.2 + 0.1 * step,
                **{f"align/{name}": share for name, share in shares.items()},
            }.items()
        ]
        self.client.log_batch(run, [Metric(name, value, 0, step) for name, value, step in values])
        if status != "RUNNING":
            self.client.set_terminated(run, status)
        return run


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(tmp_path_factory.mktemp("store"))
    for method, seeds in ACCURACY.items():
        for seed, (start, end) in seeds.items():
            store.add(method, seed, {0: 0.0, 10: 0.0})  # an earlier attempt, which the next one replaces
            store.add(method, seed, {0: start, 10: end}, coverage=0.9, supervised_tokens=0.75, units_1_1=0.8)
    store.add("best", 2, {0: 0.4, 10: 0.1}, "FAILED")
    store.add("good", 0, {0: 0.0, 10: 0.0}, "FAILED")  # newer, but the finished one counts
    store.add("poor", 1, {0: 0.5})  # killed after the first validation: MLflow has it as finished
    store.add("idle", 1, {0: 0.5}, "RUNNING")
    store.add("idle", 2, {0: 0.5})
    return store


@pytest.fixture(scope="module")
def results(store: Store) -> SweepResults:
    return load_results("small", store.uri, "eval/accuracy")


@pytest.fixture(scope="module")
def compared(results: SweepResults) -> dict[str, MethodResult]:
    return {one.method: one for one in compare(results, "poor", "best").methods}


def finals(method: str) -> list[float]:
    return [end for _, end in ACCURACY[method].values()]


@pytest.mark.parametrize("method", ACCURACY)
def test_means_and_intervals_are_scipys(compared: dict[str, MethodResult], method: str) -> None:
    found, expected = compared[method].final, stats.ttest_1samp(finals(method), 0.0)
    low, high = expected.confidence_interval(0.95)
    assert found.num_seeds == len(finals(method))
    assert (found.mean - found.half_width, found.mean + found.half_width) == pytest.approx((low, high))
    assert compared[method].start.mean == ACCURACY[method][0][0]


@pytest.mark.parametrize(("method", "seeds"), [("good", 3), ("best", 2)])
def test_differences_are_scipys_paired_test_on_the_seeds_that_both_have(
    compared: dict[str, MethodResult], method: str, seeds: int
) -> None:
    found, expected = compared[method].versus_baseline, stats.ttest_rel(finals(method)[:seeds], finals("poor")[:seeds])
    assert found is not None
    low, high = expected.confidence_interval(0.95)
    mean, half = found.estimate.mean, found.estimate.half_width
    assert (mean - half, mean + half) == pytest.approx((low, high))
    assert found.p == pytest.approx(expected.pvalue)
    assert found.excludes_zero == (expected.pvalue < 0.05)


def test_a_difference_worked_out_by_hand(compared: dict[str, MethodResult]) -> None:
    difference = compared["good"].versus_baseline
    assert difference is not None
    assert difference.estimate.mean == pytest.approx((0.2 + 0.3 + 0.25) / 3)
    assert difference.estimate.half_width == pytest.approx(T_2 * 0.05 / math.sqrt(3), rel=1e-5)
    assert compared["poor"].versus_baseline is None
    assert compared["good"].versus_best is None  # best among those that are no upper bound


def test_shares_of_the_gain_worked_out_by_hand(compared: dict[str, MethodResult]) -> None:
    recovered = compared["good"].recovered
    assert recovered is not None
    assert recovered.num_seeds == 2  # the upper bound's third seed failed
    shares = 0.2 / 0.5, 0.4 / 0.55
    assert recovered.mean == pytest.approx(sum(shares) / 2)
    assert recovered.half_width == pytest.approx(T_1 * (shares[1] - shares[0]) / 2, rel=1e-5)  # s = |a - b| / sqrt 2
    assert compared["best"].recovered is not None
    assert (compared["best"].recovered.mean, compared["best"].recovered.half_width) == pytest.approx((1.0, 0.0))


def test_methods_are_in_order_and_the_upper_bound_does_not_win(results: SweepResults) -> None:
    found = compare(results, None, "best")
    assert [one.method for one in found.methods] == ["best", "good", "poor", "idle"]
    assert found.best is not None
    assert found.best.method == "good"
    assert [one.method for one in found.rivals] == ["poor"]
    upside_down = compare(results, lower_is_better=True)
    assert [one.method for one in upside_down.methods] == ["poor", "good", "best", "idle"]


def test_what_is_not_counted_is_named_with_the_reason(results: SweepResults) -> None:
    assert missing_lines(results.missing) == [
        "best: seed 2 failed",
        "idle: seed 0 not begun; seed 1 running, or killed; seed 2 ended before the first step",
    ]
    assert results.num_seeds == dict.fromkeys(("poor", "good", "best", "idle"), 3)


def test_a_metric_that_is_not_a_number_at_the_end_is_not_counted(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for seed, end in enumerate((0.5, math.nan, math.inf)):
        store.add("good", seed, {0: 0.5, 10: end})
    store.add("poor", 0, {0: 0.5, 10: 0.4, 20: 0.3})
    store.add("poor", 1, {0: 0.5, 10: 0.4})
    results = load_results("small", store.uri, "eval/accuracy")
    assert missing_lines(results.missing)[:2] == ["poor: seed 2 not begun", "good: seeds 1, 2 eval/accuracy not finite"]
    assert results.last("eval/accuracy", "good").to_dict() == {0: 0.5}
    assert results.notes == ["Seeds of poor end at different steps: 10, 20."]


def test_an_older_sweep_of_the_name_is_left_out_and_mentioned(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.client.create_run(store.experiment, start_time=1, tags={"simct.sweep": "small"})
    store.add("good", 0, {0: 0.5, 10: 0.6})
    results = load_results("small", store.uri, "eval/accuracy")
    assert results.last("eval/accuracy", "good").to_dict() == {0: 0.6}
    assert results.notes == ["Older sweeps of this name, which this report leaves out: 1."]


def test_a_sweep_file_that_cannot_be_read_leaves_the_cells_that_were_tried(tmp_path: Path) -> None:
    store = Store(tmp_path, "name: small\nmethod: {}\n")
    store.add("good", 0, {0: 0.5, 10: 0.6})
    results = load_results("small", store.uri, "eval/accuracy")
    assert results.methods == ["good"]
    assert len(results.notes) == 1
    assert "Did you mean 'methods'" in results.notes[0]


def test_histories_are_the_same_from_the_database_and_from_the_client(store: Store) -> None:
    run = store.client.create_run(store.experiment).info.run_id  # of no sweep
    for step, value, time in ((0, 0.3, 2), (0, 0.1, 1), (10, math.inf, 3), (5, math.nan, 3), (7, -math.inf, 3)):
        store.client.log_metric(run, "eval/accuracy", value, step=step, timestamp=time)
    store.client.log_metric(run, "timing/step_seconds", 0.3)
    names = ["eval/accuracy", "timing/step_seconds"]
    columns = ["metric", "step", "timestamp"]
    queried, asked = _query(store.uri, [run], names), _ask(store.client, [run], names)
    assert sorted(map(tuple, queried[columns].values)) == sorted(map(tuple, asked[columns].values))
    found = read_histories(store.client, store.uri, [run], names[:1])
    assert found["step"].tolist() == [0, 5, 7, 10]
    np.testing.assert_array_equal(found["value"], [0.3, math.nan, math.nan, math.nan])  # the newer value at step 0


def test_the_page_stands_alone_and_says_the_same_as_the_text(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--sweep", "small", "--tracking-uri", store.uri, "--output", str(tmp_path), "--baseline", "poor"]
    assert main([*options, "--upper", "best"]) == 0
    page, text = (tmp_path / "report.html").read_text(), (tmp_path / "report.md").read_text()
    pictures = {path.stem: path.read_bytes() for path in tmp_path.glob("*.png")}
    assert pictures.keys() == {"final", "curves", "units"}
    assert all(data.startswith(b"\x89PNG") and len(data) > 10_000 for data in pictures.values())
    inlined = re.findall(r'(?:src|href|srcset|action|data)="([^"]*)"', page)
    assert len(inlined) == len(pictures)
    assert all(source.startswith("data:image/png;base64,") for source in inlined)
    assert not re.findall(r"<script|<link|<iframe|@import|url\(|//", re.sub(r"base64,[^\"]*", "", page))
    assert "# the file" in page
    row = ["good", "3", "50.0 %", "75.0 % ± 32.9", "+25.0 ± 12.4 **", "56.4 % ± 207.9 (2 seeds)"]
    assert f"| {' | '.join(row)} |" in text
    assert all(f"<td>{cell}</td>" in page for cell in row)
    assert "| best (upper) | 2 of 3 | 40.0 % | 92.5 % ± 31.8 | +37.5 ± 31.8 ** | 100.0 % ± 0.0 |" in text
    assert "| good | 90.0 % | 75.0 % | 80.0 % | 0.70 |" in text  # median of .2 and 1.2 seconds
    verdict = "good ends best, at 75.0 % ± 32.9. That is 25.0 ± 12.4 points above the next, poor, on the same 3 seeds"
    for place in (page, text, capsys.readouterr().out):
        assert verdict in place
        assert "best: seed 2 failed" in place


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (["--sweep", "large"], TrackingError, "has no sweep 'large'"),
        (["--sweep", "sm'all"], RecipeError, "expected the name in a sweep's file"),
        (["--sweep", "small", "--metric", "eval/accurcy"], TrackingError, "eval/accuracy"),
        (["--sweep", "small", "--metric", "accuracy"], RecipeError, "expected a metric"),
        (["--sweep", "small", "--baseline", "god"], RecipeError, "Did you mean 'good'"),
    ],
)
def test_what_is_not_there_is_said_and_nothing_is_written(
    store: Store, tmp_path: Path, options: list[str], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        main([*options, "--tracking-uri", store.uri, "--output", str(tmp_path / "out")])
    assert not list(tmp_path.iterdir())


def test_a_missing_database_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(TrackingError, match="There is no database"):
        main(["--sweep", "small", "--tracking-uri", f"sqlite:///{tmp_path}/none.db"])
    assert not list(tmp_path.iterdir())


def test_a_sweep_without_a_finished_run_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.add("good", 0, {0: 0.5}, "FAILED")
    with pytest.raises(TrackingError, match="has 1 runs, none of which has finished"):
        load_results("small", store.uri, "eval/accuracy")
