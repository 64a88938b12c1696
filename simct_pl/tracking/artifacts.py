"""What is no number, to any of Lightning's loggers: texts, tables and pictures in; out, each where its logger takes it.

| logger | texts | tables | pictures |
|---|---|---|---|
| RunLogger, MLFlowLogger | artifacts | artifacts that grow | artifacts |
| TensorBoardLogger | the text tab | the text tab, as Markdown | the image tab |
| WandbLogger | tables of one cell | tables | images |
| CSVLogger | files beside metrics.csv | a CSV file that grows | files beside it |

Any other logger gets numbers alone, and a run says so once.
"""

from __future__ import annotations

import csv
import shutil
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_info
from PIL import Image

from simct_pl.tracking.logger import RunLogger

MLFLOW_LOGGERS = (MLFlowLogger, RunLogger)

Table = Mapping[str, Sequence[Any]]  # values by column, all of one length


def log_text(loggers: Iterable[Logger], file: str, text: str) -> None:
    """A text once a run. file: its name, `recipe.yaml` say; what stands before the dot is its name in a tracker."""
    for logger in loggers:
        if isinstance(logger, MLFLOW_LOGGERS):
            logger.experiment.log_text(logger.run_id, text, file)
        elif isinstance(logger, TensorBoardLogger):
            logger.experiment.add_text(_key(file), f"```\n{text}\n```")
        elif isinstance(logger, WandbLogger):
            logger.log_text(_key(file), columns=["text"], data=[[text]])
        elif isinstance(logger, CSVLogger):
            _beside(logger, file).write_text(text, encoding="utf-8")
        else:
            _numbers_alone(type(logger).__name__)


def log_table(loggers: Iterable[Logger], file: str, table: Table, step: int) -> None:
    """Rows that are added to the table of that name. file: ends in `.json`, as MLflow's tables do."""
    for logger in loggers:
        if isinstance(logger, MLFLOW_LOGGERS):
            logger.experiment.log_table(logger.run_id, {name: list(values) for name, values in table.items()}, file)
        elif isinstance(logger, TensorBoardLogger):
            logger.experiment.add_text(_key(file), _markdown(table), step)
        elif isinstance(logger, WandbLogger):
            logger.log_table(_key(file), columns=list(table), data=[list(row) for row in _rows(table)], step=step)
        elif isinstance(logger, CSVLogger):
            _append(_beside(logger, f"{_key(file)}.csv"), table)
        else:
            _numbers_alone(type(logger).__name__)


def log_picture(loggers: Iterable[Logger], path: Path, step: int) -> None:
    """A picture that may be drawn again; the tracker has it under the file's name. path: a PNG."""
    for logger in loggers:
        if isinstance(logger, MLFLOW_LOGGERS):
            logger.experiment.log_artifact(logger.run_id, str(path))
        elif isinstance(logger, TensorBoardLogger):
            with Image.open(path) as picture:
                pixels_HWC = np.asarray(picture.convert("RGB"))
            logger.experiment.add_image(path.stem, pixels_HWC, step, dataformats="HWC")
        elif isinstance(logger, WandbLogger):
            logger.log_image(path.stem, [str(path)], step=step)
        elif isinstance(logger, CSVLogger):
            shutil.copyfile(path, _beside(logger, path.name))
        else:
            _numbers_alone(type(logger).__name__)


def _key(file: str) -> str:
    return Path(file).stem


def _rows(table: Table) -> list[tuple[Any, ...]]:
    return list(zip(*table.values(), strict=True))


def _markdown(table: Table) -> str:
    lines = [table, ["---"] * len(table), *_rows(table)]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(value: Any) -> str:
    """In one line, and with no sign that would end the cell."""
    return str(value).replace("|", "\\|").replace("\n", " ")


def _beside(logger: CSVLogger, name: str) -> Path:
    """A file beside the logger's metrics."""
    folder = Path(logger.log_dir)
    folder.mkdir(parents=True, exist_ok=True)
    return folder / name


def _append(path: Path, table: Table) -> None:
    is_new = not path.exists()
    with path.open("a", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        if is_new:
            writer.writerow(table)
        writer.writerows(_rows(table))


@cache
def _numbers_alone(logger: str) -> None:
    rank_zero_info(f"{logger} gets numbers alone: texts, tables and pictures go to MLflow, TensorBoard, W&B and CSV.")
