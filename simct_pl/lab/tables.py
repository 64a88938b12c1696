"""A report's words and numbers: the verdict, the two tables cell by cell, and all of it as Markdown.

In: SweepResults and its Comparison. Out: text. Tables are lists of rows, a row maps a column's title to its cell.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import groupby

from simct_pl.lab.compare import Comparison, Difference, MethodResult
from simct_pl.lab.metric import interval_text
from simct_pl.lab.results import LATE, MissingCell, SweepResults

Row = dict[str, str]
NOTE = (
    "± is half of Student's 95 % interval over seeds; every method has the same held-out problems, so it says nothing "
    "about other problems. Differences are paired, seed by seed: * the interval excludes zero, ** it still would among "
    "so many comparisons (Holm). Recovered: the gain (end - start) as a share of the upper bound's, seed by seed."
)
RUN_NOTE = (
    f"Means over seeds and the last {LATE} training steps, seconds: the median step. Graded: student tokens that the "
    "objective compared. Loss: per response token, from units that are one token on both sides, and from all others. "
    "Held-out answers and how many were cut at the limit: at the end. Sampled right: training responses, as the grader "
    "sees them. Text KL: log p_student - log p_teacher of the "
    "training responses, nats a byte. Non-canonical: training responses that the student's own tokenizer would have "
    "spelt with other ids."
)


def verdict(compared: Comparison) -> str:
    """Who wins, by how much, and whether that is noise."""
    best, rivals, metric = compared.best, compared.rivals, compared.metric
    if best is None:
        return "There is nothing to compare: only the upper bound has finished."
    said = f"{best.method} ends best, at {metric.text(best.final.mean, best.final.half_width)}."
    if not rivals:
        return f"{said} No other method has finished."
    if best.final.num_seeds < 2:
        return f"{said} It is a single seed: nothing tells a difference from noise."
    tied = [one.method for one in rivals if one.versus_best is not None and not one.versus_best.excludes_zero]
    if tied:
        return f"{said} On the same seeds it cannot be told from {_list(tied)}: that difference may be noise."
    runner_up = rivals[0]
    assert runner_up.versus_best is not None
    gap = runner_up.versus_best.estimate
    sign = 1 if metric.lower_is_better else -1
    difference = f"{metric.difference_text(sign * gap.mean, gap.half_width)} {metric.difference_unit}".strip()
    way = "below" if metric.lower_is_better else "above"
    return (
        f"{said} That is {difference.lstrip('+')} {way} the next, {runner_up.method}, on the same {gap.num_seeds} "
        "seeds: more than the noise between seeds."
    )


def result_rows(compared: Comparison) -> list[Row]:
    """One row a method: where it began and ended, and what that is worth."""
    metric, rows = compared.metric, []
    for one in compared.methods:
        name = f"{one.method} (upper)" if one.method == compared.upper else one.method
        row = {"method": name, "seeds": _seeds(one), "start": metric.text(one.start.mean)}
        row["end"] = metric.text(one.final.mean, one.final.half_width)
        if compared.baseline is not None:
            row[f"minus {compared.baseline}{_unit(compared)}"] = _difference(one, one.versus_baseline, compared)
        elif compared.best is not None:
            row[f"minus {compared.best.method}{_unit(compared)}"] = _difference(one, one.versus_best, compared)
        if compared.upper is not None:
            row["recovered"] = _recovered(one)
        rows.append(row)
    return rows


def run_rows(results: SweepResults, compared: Comparison) -> list[Row]:
    """One row a method: what was graded and what its responses were like. Columns that nobody logged are left out."""
    columns: dict[str, tuple[str, Callable[[str, str], float], Callable[[float], str]]] = {
        "coverage": ("align/coverage", results.late, _percent),
        "graded": ("align/supervised_tokens", results.late, _percent),
        "1:1 units": ("align/units_1_1", results.late, _percent),
        "loss, 1:1 units": ("loss/shared_units", results.late, "{:.4f}".format),
        "loss, other units": ("loss/span_units", results.late, "{:.4f}".format),
        "answer tokens": ("eval/response_tokens", lambda *key: float(results.last(*key).mean()), "{:.1f}".format),
        "answers cut": ("eval/truncation_rate", lambda *key: float(results.last(*key).mean()), _percent),
        "sampled right": ("rollout/accuracy", results.late, _percent),
        "text KL": ("policy/text_kl", results.late, "{:.3f}".format),
        "non-canonical": ("align/non_canonical", results.late, _percent),
        "seconds a step": ("timing/step_seconds", results.median, "{:.2f}".format),
    }
    used = {title: column for title, column in columns.items() if results.has(column[0])}
    rows = []
    for one in compared.measured:
        values = {title: read(metric, one.method) for title, (metric, read, _) in used.items()}
        texts = {title: "–" if math.isnan(value) else used[title][2](value) for title, value in values.items()}
        rows.append({"method": one.method, **texts})
    return rows


def missing_lines(missing: list[MissingCell]) -> list[str]:
    """A line a method: "gold: seed 3 failed; seeds 4, 5 not begun"."""
    lines = []
    for method, cells in groupby(missing, key=lambda cell: cell.method):
        by_reason: dict[str, list[str]] = {}
        for cell in cells:
            by_reason.setdefault(cell.reason, []).append(str(cell.seed))
        parts = [
            f"{'seed' if len(seeds) == 1 else 'seeds'} {', '.join(seeds)} {reason}"
            for reason, seeds in by_reason.items()
        ]
        lines.append(f"{method}: {'; '.join(parts)}")
    return lines


def markdown(results: SweepResults, compared: Comparison) -> str:
    """The report without its pictures."""
    parts = [f"# {results.name}: {results.metric}", verdict(compared)]
    if results.missing:
        parts.append("Not counted:\n\n" + "\n".join(f"- {line}" for line in missing_lines(results.missing)))
    parts += results.notes
    parts += [_markdown_table(result_rows(compared)), NOTE]
    if len((rows := run_rows(results, compared))[0]) > 1:
        parts += [_markdown_table(rows), RUN_NOTE]
    return "\n\n".join(parts) + "\n"


def _markdown_table(rows: list[Row]) -> str:
    titles = list(rows[0])
    lines = [titles, ["---", *["--:"] * (len(titles) - 1)], *(list(row.values()) for row in rows)]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def _seeds(one: MethodResult) -> str:
    done = one.final.num_seeds
    return str(done) if done == one.num_planned else f"{done} of {one.num_planned}"


def _unit(compared: Comparison) -> str:
    unit = compared.metric.difference_unit
    return f", {unit}" if unit else ""


def _difference(one: MethodResult, difference: Difference | None, compared: Comparison) -> str:
    """With its marks, and its seeds where they are fewer than the method's."""
    if difference is None or not difference.estimate.num_seeds:
        return "–"
    estimate = difference.estimate
    marks = " **" if difference.stands else " *" if difference.excludes_zero else ""
    return compared.metric.difference_text(estimate.mean, estimate.half_width) + marks + _fewer(one, estimate.num_seeds)


def _recovered(one: MethodResult) -> str:
    if one.recovered is None or not one.recovered.num_seeds:
        return "–"
    mean, half_width = 100 * one.recovered.mean, 100 * one.recovered.half_width
    return interval_text(mean, half_width, " %", 1) + _fewer(one, one.recovered.num_seeds)


def _fewer(one: MethodResult, num_seeds: int) -> str:
    return "" if num_seeds == one.final.num_seeds else f" ({num_seeds} {'seed' if num_seeds == 1 else 'seeds'})"


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _list(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
