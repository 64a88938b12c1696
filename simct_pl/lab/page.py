"""A report as one HTML page that needs nothing beside it: its pictures are in it, and it loads nothing."""

from __future__ import annotations

import base64
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from simct_pl.lab.compare import Comparison
from simct_pl.lab.results import SweepResults
from simct_pl.lab.tables import NOTE, RUN_NOTE, missing_lines, result_rows, run_rows, verdict

CAPTIONS = {
    "curves": "How each method got there",
    "steps": "What the responses were like on the way",
    "units": "What was graded",
    "time": "What a step cost",
}


def html(results: SweepResults, compared: Comparison, pictures: dict[str, bytes]) -> str:
    """pictures: PNGs by name; "final" goes to the top, the others under their captions."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    inline = {name: f"data:image/png;base64,{base64.b64encode(data).decode()}" for name, data in pictures.items()}
    return environment.get_template("page.html.jinja").render(
        results=results,
        compared=compared,
        verdict=verdict(compared),
        missing=missing_lines(results.missing),
        result_rows=result_rows(compared),
        note=NOTE,
        run_rows=run_rows(results, compared),
        run_note=RUN_NOTE,
        final=inline["final"],
        pictures={CAPTIONS[name]: inline[name] for name in CAPTIONS if name in inline},
    )
