"""A report's text: the table as Markdown, and one HTML page that needs nothing beside it."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable

from jinja2 import Environment

from simct_pl.lab.compare import Estimate, MethodResult
from simct_pl.lab.results import SweepResults

Row = dict[str, str]
CAPTIONS = {
    "final": "Where each method ended",
    "curves": "How it got there",
    "diagnostics": "What happened to the responses (training steps, smoothed)",
    "units": "What was graded (last training step)",
}
PAGE = Environment(autoescape=True).from_string("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ name }}</title><style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 75em; margin: 2em auto; padding: 0 1em; color: #222 }
table { border-collapse: collapse; margin: 1em 0 } th, td { padding: .25em .8em; text-align: right }
th { border-bottom: 2px solid #888; font-weight: 600 } td { border-bottom: 1px solid #ddd }
th:first-child, td:first-child { text-align: left } tr:first-child td { font-weight: 600 }
img { max-width: 100%; height: auto } pre { background: #f6f6f6; padding: 1em; overflow-x: auto }
.note { color: #555 } .warn { background: #fff3cd; padding: .6em 1em }
</style></head><body>
<h1>{{ name }}: {{ metric }}</h1>
<p>{{ verdict }}</p>
{% if missing %}<p class="warn">Without a finished run: {{ missing | join("; ") }}.</p>{% endif %}
<table><tr>{% for title in rows[0] %}<th>{{ title }}</th>{% endfor %}</tr>
{% for row in rows %}<tr>{% for cell in row.values() %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</table>
<p class="note">{{ note }}</p>
{% for picture in pictures %}<h2>{{ picture.caption }}</h2>
<img alt="{{ picture.caption }}" src="data:image/png;base64,{{ picture.data }}">
{% endfor %}
<h2>The sweep</h2><pre>{{ sweep_file }}</pre>
</body></html>
""")


def table_rows(
    results: SweepResults, compared: list[MethodResult], baseline: str | None, upper: str | None
) -> list[Row]:
    """The table, cell by cell, as text."""
    number = _percent if _is_share(compared) else _plain
    rows = []
    for one in compared:
        row = {"method": one.method, "seeds": str(one.final.num_seeds), "start": number(one.start.mean)}
        row["end"] = _interval(one.final, number)
        if baseline is not None:
            row[f"− {baseline}"] = "–" if one.difference is None else _difference(one.difference, number)
        if upper is not None:
            row[f"of {upper}'s gain"] = "–" if one.recovered is None else _interval(one.recovered, _percent)
        rows.append(row | _run_means(results, one.method))
    return rows


def _run_means(results: SweepResults, method: str) -> Row:
    """Means over seeds of what else a reader asks for; a dash where it was not logged."""
    wanted: dict[str, tuple[str, Callable[[float], str]]] = {
        "graded tokens": ("align/supervised_tokens", _percent),
        "response tokens": ("eval/response_tokens", lambda value: f"{value:.1f}"),
        "cut": ("eval/truncation_rate", _percent),
        "non-canonical": ("align/non_canonical", _percent),
        "s a step": ("timing/step_seconds", lambda value: f"{value:.2f}"),
    }
    runs = results.runs[results.runs["method"] == method]
    means = {title: float(runs[name].mean()) if name in runs else math.nan for title, (name, _) in wanted.items()}
    return {title: "–" if math.isnan(mean) else wanted[title][1](mean) for title, mean in means.items()}


def _is_share(compared: list[MethodResult]) -> bool:
    return all(0 <= one.final.mean <= 1 and 0 <= one.start.mean <= 1 for one in compared)


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _plain(value: float) -> str:
    return f"{value:.4g}"


def _interval(estimate: Estimate, number: Callable[[float], str]) -> str:
    if math.isnan(estimate.half_width):
        return number(estimate.mean)
    return f"{number(estimate.mean)} ± {number(estimate.half_width).removesuffix(' %')}"


def _difference(estimate: Estimate, number: Callable[[float], str]) -> str:
    """With its sign; an asterisk where the interval excludes zero."""
    sign = "+" if estimate.mean >= 0 else ""
    return f"{sign}{_interval(estimate, number)}{' *' if estimate.excludes_zero else ''}"


def verdict(compared: list[MethodResult]) -> str:
    """One sentence: who is ahead, and whether the runner-up's interval overlaps."""
    best, *others = compared
    if not others:
        return f"{best.method} is the only method."
    second = others[0]
    gap, noise = abs(best.final.mean - second.final.mean), best.final.half_width + second.final.half_width
    if math.isnan(noise):
        return f"{best.method} is ahead of {second.method}, on a single seed: that may be noise."
    if gap > noise:
        return f"{best.method} is ahead of {second.method}, and their intervals do not overlap."
    return f"{best.method} has the best mean, but its interval and that of {second.method} overlap."


NOTE = (
    "± is half of Student's 95 % interval over seeds. Differences are paired by seed; * marks those whose interval "
    "excludes zero. Non-canonical: responses that the student's own tokenizer would have spelt with other ids."
)


def markdown(rows: list[Row], statement: str) -> str:
    titles = list(rows[0])
    lines = [" | ".join(titles), " | ".join(["---", *["--:"] * (len(titles) - 1)])]
    lines += [" | ".join(row.values()) for row in rows]
    return "\n".join([statement, "", *(f"| {line} |" for line in lines), "", NOTE, ""])


def html(results: SweepResults, rows: list[Row], metric: str, statement: str, pictures: dict[str, bytes]) -> str:
    shown = [
        {"caption": CAPTIONS[name], "data": base64.b64encode(data).decode()}
        for name, data in sorted(pictures.items(), key=lambda item: list(CAPTIONS).index(item[0]))
    ]
    return PAGE.render(
        name=results.name,
        metric=metric,
        rows=rows,
        verdict=statement,
        missing=results.missing,
        note=NOTE,
        pictures=shown,
        sweep_file=results.sweep_file,
    )
