"""SweepResults from numbers, without a store."""

from __future__ import annotations

import pandas as pd

from simct_pl.lab.results import SweepResults

Values = dict[str, list[float]]


def results_of(metric: str, starts: Values, ends: Values, **others: Values) -> SweepResults:
    """Method -> value by seed, of the metric at steps 0 and 10; others: the same of further metrics, at step 10, with
    "__" for the slash of their names.
    """
    rows = [
        (method, seed, name, step, value)
        for name, step, table in [
            (metric, 0, starts),
            (metric, 10, ends),
            *((name.replace("__", "/"), 10, table) for name, table in others.items()),
        ]
        for method, values in table.items()
        for seed, value in enumerate(values)
    ]
    curves = pd.DataFrame(rows, columns=["method", "seed", "metric", "step", "value"])
    return SweepResults("made", metric, list(ends), curves, {m: len(values) for m, values in ends.items()}, "")
