"""Every value that some runs logged of some metrics, as one table.

In: run ids and metric names. Out: a frame of columns run_id, metric, step, value, in the order of the steps; of values
that were logged twice at a step (a run that was cut off and went on) the newer one counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd

from simct_pl.progress import follow

if TYPE_CHECKING:
    from mlflow import MlflowClient

COLUMNS = ["run_id", "metric", "step", "timestamp", "value"]
DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
LARGEST = 1.7976931348623157e308  # what MLflow's databases hold instead of infinity
# MLflow's client asks for one metric of one run at a time, which takes many times as long.
QUERY = """
    SELECT run_uuid AS run_id, key AS metric, step, timestamp, CASE WHEN is_nan THEN NULL ELSE value END AS value
    FROM metrics WHERE run_uuid IN :run_ids AND key IN :metrics
"""


def read_histories(
    client: MlflowClient, tracking_uri: str, run_ids: Sequence[str], metrics: Sequence[str]
) -> pd.DataFrame:
    """From a database in one query, from a server or a folder through the client; infinities come as NaN."""
    from_database = tracking_uri.startswith(DATABASES)
    frame = _query(tracking_uri, run_ids, metrics) if from_database else _ask(client, run_ids, metrics)
    # NULL and the stand-in for infinity become NaN; `where` leaves all else.
    frame["value"] = frame["value"].astype(float).where(lambda value: value.abs() < LARGEST)
    frame = frame.sort_values(["step", "timestamp"], kind="stable")
    return frame.drop_duplicates(["run_id", "metric", "step"], keep="last").drop(columns="timestamp")


def _query(tracking_uri: str, run_ids: Sequence[str], metrics: Sequence[str]) -> pd.DataFrame:
    import sqlalchemy

    query = sqlalchemy.text(QUERY).bindparams(
        sqlalchemy.bindparam("run_ids", expanding=True), sqlalchemy.bindparam("metrics", expanding=True)
    )
    engine = sqlalchemy.create_engine(tracking_uri)
    try:
        with engine.connect() as connection:
            values = {"run_ids": list(run_ids), "metrics": list(metrics)}
            return pd.read_sql_query(query, connection, params=values)
    finally:
        engine.dispose()


def _ask(client: MlflowClient, run_ids: Sequence[str], metrics: Sequence[str]) -> pd.DataFrame:
    points = [
        (run_id, metric, point.step, point.timestamp, point.value)
        for run_id in follow(run_ids, "reading runs")
        for metric in metrics
        for point in client.get_metric_history(run_id, metric)
    ]
    return pd.DataFrame(points, columns=COLUMNS)
