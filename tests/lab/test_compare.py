"""What a comparison concludes, how it words it, and what it draws, on numbers that leave no doubt."""

from __future__ import annotations

import warnings

import pytest

from simct_pl.lab.compare import Comparison, compare
from simct_pl.lab.metric import Metric
from simct_pl.lab.pictures import BETTER, NOISE, WORSE, _final, draw_all
from simct_pl.lab.tables import result_rows, run_rows, verdict
from tests.lab.frames import Values, results_of

ENDS: Values = {
    "a": [0.90, 0.91, 0.92, 0.93],
    "b": [0.89, 0.91, 0.93, 0.92],  # a - b = .01, 0, -.01, .01: may be noise
    "c": [0.80, 0.81, 0.82, 0.84],  # a - c = .10, .10, .10, .09: is not
}
STARTS: Values = dict.fromkeys(ENDS, [0.5] * 4)


def compared(ends: Values, metric: str = "eval/accuracy", **options: str | bool | None) -> Comparison:
    starts = {method: [0.5] * len(values) for method, values in ends.items()}
    return compare(results_of(metric, starts, ends), **options)  # type: ignore[arg-type]


def test_the_verdict_names_those_that_cannot_be_told_from_the_best() -> None:
    assert verdict(compared(ENDS)) == (
        "a ends best, at 91.5 % ± 2.1. On the same seeds it cannot be told from b: that difference may be noise."
    )


def test_the_verdict_says_by_how_much_the_best_is_ahead() -> None:
    found = verdict(compared({"a": ENDS["a"], "c": ENDS["c"]}))
    assert found.endswith("9.8 ± 0.8 points above the next, c, on the same 4 seeds: more than the noise between seeds.")


def test_the_verdict_on_a_loss_is_the_other_way_round() -> None:
    losses = {"a": [0.9, 0.8, 0.7], "z": [0.5, 0.41, 0.3]}
    assert verdict(compared(losses, "eval/loss")) == (
        "z ends best, at 0.40 ± 0.25. That is 0.397 ± 0.014 below the next, a, on the same 3 seeds: "
        "more than the noise between seeds."
    )


def test_one_seed_tells_nothing() -> None:
    assert "single seed" in verdict(compared({"a": [0.9], "b": [0.1]}))
    assert "No other method" in verdict(compared({"a": [0.9, 0.8]}))
    assert "only the upper bound" in verdict(compared({"a": [0.9, 0.8]}, upper="a"))


def test_seeds_that_all_say_the_same_have_no_noise() -> None:
    found = compared({"a": [0.5, 0.5], "b": [0.25, 0.25], "c": [0.5, 0.5]}, baseline="a")
    by_name = {one.method: one.versus_baseline for one in found.methods}
    assert by_name["b"] is not None
    assert by_name["c"] is not None
    assert (by_name["b"].p, by_name["c"].p) == (0.0, 1.0)


def test_holm_keeps_what_stands_among_many() -> None:
    """p = .0041 (three comparisons: below .05/3), .035 (above .05/2, though below .05), .37."""
    base = [0.5, 0.5, 0.5, 0.5]
    ends = {
        "base": base,
        "sure": [0.60, 0.62, 0.64, 0.66],
        "maybe": [0.51, 0.52, 0.54, 0.53],
        "noise": [0.51, 0.49, 0.52, 0.50],
    }
    rows = {row["method"]: row["minus base, points"] for row in result_rows(compared(ends, baseline="base"))}
    assert rows["sure"].endswith(" **")
    assert rows["noise"][-1].isdigit()
    p = {one.method: one.versus_baseline.p for one in compared(ends, baseline="base").methods if one.versus_baseline}
    assert 0.05 / 2 < p["maybe"] < 0.05, "the scene must be one in which Holm's correction decides"
    assert rows["maybe"].endswith(" *")


def test_an_upper_bound_that_gained_nothing_recovers_no_share() -> None:
    found = compared({"a": [0.6, 0.7], "top": [0.5, 0.9]}, upper="top")
    (recovered,) = [one.recovered for one in found.methods if one.method == "a"]
    assert recovered is not None
    assert (recovered.mean, recovered.num_seeds) == (pytest.approx(0.5), 1)


@pytest.mark.parametrize(
    ("name", "values", "lower", "share"),
    [
        ("eval/accuracy", [0.1, 1.0], False, True),
        ("eval/accuracy", [10.0, 90.0], False, False),
        ("eval/loss", [0.1, 0.2], True, False),
        ("eval/bits_per_byte", [0.9], True, False),
        ("eval/truncation_rate", [0.0], True, True),
        ("policy/text_kl", [0.1, 0.3], True, False),
    ],
)
def test_a_metric_is_known_by_name_and_values(name: str, values: list[float], lower: bool, share: bool) -> None:
    metric = Metric.of(name, values)
    assert (metric.lower_is_better, metric.is_share) == (lower, share)


def test_numbers_are_written_to_the_digit_that_the_interval_leaves() -> None:
    loss, accuracy = Metric.of("eval/loss", [0.1]), Metric.of("eval/accuracy", [0.1])
    assert [loss.text(0.123456, 0.00789), loss.text(0.123456), loss.text(float("nan"))] == [
        "0.1235 ± 0.0079",
        "0.1235",
        "–",
    ]
    assert loss.text(0.054560000000000011, 9.6e-18) == "0.05456"
    assert accuracy.text(0.9149, 0.0123) == "91.5 % ± 1.2"
    assert accuracy.difference_text(-0.019, 0.0008) == "-1.9 ± 0.1"


def test_run_rows_leave_out_what_nobody_logged() -> None:
    results = results_of("eval/accuracy", STARTS, ENDS, align__units_1_1={"a": [0.7, 0.9]})
    assert run_rows(results, compare(results))[:2] == [
        {"method": "a", "1:1 units": "80.0 %"},
        {"method": "b", "1:1 units": "–"},
    ]


def test_text_kl_is_a_column_in_nats_a_byte() -> None:
    values = {"good": [0.25, 0.35]}
    results = results_of("eval/accuracy", values, values, policy__text_kl={"good": [0.1, 0.3]})
    assert run_rows(results, compare(results)) == [{"method": "good", "text KL": "0.200"}]


def test_the_picture_shows_noise_in_grey_and_the_best_on_top() -> None:
    results = results_of("eval/accuracy", STARTS, ENDS)
    figure = _final(results, compare(results, baseline="b"))
    ends, gaps = figure.axes
    assert [label.get_text() for label in ends.get_yticklabels()] == ["c", "b (baseline)", "a"]
    drawn = {container.lines[0].get_ydata()[0]: container.lines[0] for container in gaps.containers}
    assert {place: line.get_color() for place, line in drawn.items()} == {0: WORSE, 2: NOISE}
    assert drawn[0].get_xdata()[0] == pytest.approx(25 * (sum(ENDS["c"]) - sum(ENDS["b"])))
    (gap,) = _final(results, compare(results, baseline="c")).axes[1].containers[-1:]
    assert gap.lines[0].get_color() == BETTER


@pytest.mark.parametrize("ends", [{"only": [0.5]}, {f"method{i}": [0.5 + i / 99, 0.5] for i in range(9)}])
def test_a_single_run_and_many_methods_are_drawn(ends: Values) -> None:
    others = dict.fromkeys(("align__coverage", "loss__span_units", "timing__seconds/rollout"), ends)
    results = results_of("eval/accuracy", ends, ends, **others)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert draw_all(results, compare(results)).keys() == {"final", "curves", "steps", "units", "time"}
