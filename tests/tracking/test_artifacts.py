"""Texts, tables and pictures: what each of Lightning's loggers has of them when a run is over."""

from __future__ import annotations

import csv
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.logger import DummyLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from simct_pl.tracking.artifacts import _numbers_alone, log_picture, log_table, log_text

TABLE = {"step": [5, 5], "answer": ["1|2\n3", "ü"]}


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "curve.png"
    Image.fromarray(np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)).save(path)
    return path


def log_all(logger: Logger, picture: Path) -> None:
    log_text([logger], "recipe.yaml", "a: 1\n")
    log_table([logger], "samples.json", TABLE, 5)
    log_table([logger], "samples.json", {"step": [6], "answer": ["later"]}, 6)
    log_picture([logger], picture, 7)


def test_csv_has_files_beside_its_metrics(tmp_path: Path, picture: Path) -> None:
    logger = CSVLogger(tmp_path / "run", name=None, version="")
    log_all(logger, picture)
    folder = Path(logger.log_dir)
    assert (folder / "recipe.yaml").read_text() == "a: 1\n"
    assert (folder / "curve.png").read_bytes() == picture.read_bytes()
    with (folder / "samples.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [["step", "answer"], ["5", "1|2\n3"], ["5", "ü"], ["6", "later"]]


def test_tensorboard_has_texts_and_images(tmp_path: Path, picture: Path) -> None:
    logger = TensorBoardLogger(tmp_path / "run")
    log_all(logger, picture)
    logger.experiment.close()
    events = EventAccumulator(logger.log_dir, size_guidance={"tensors": 0, "images": 0}).Reload()
    texts = {tag: events.Tensors(f"{tag}/text_summary") for tag in ("recipe", "samples")}
    found = {tag: [(e.step, e.tensor_proto.string_val[0].decode()) for e in of_tag] for tag, of_tag in texts.items()}
    assert found["recipe"] == [(0, "```\na: 1\n\n```")]
    assert found["samples"][0] == (5, "| step | answer |\n| --- | --- |\n| 5 | 1\\|2 3 |\n| 5 | ü |")
    assert found["samples"][1][0] == 6
    (image,) = events.Images("curve")
    assert (image.step, image.width, image.height) == (7, 3, 2)


class RecordingWandb(WandbLogger):
    """Takes the calls that WandbLogger would, by its own signatures, and sends nothing."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []


def _recorded(name: str) -> Callable[..., None]:
    signature = inspect.signature(getattr(WandbLogger, name))

    def record(self: RecordingWandb, *args: Any, **kwargs: Any) -> None:
        bound = signature.bind(self, *args, **kwargs).arguments
        self.calls.append((name, {key: value for key, value in bound.items() if key not in ("self", "kwargs")}))

    return record


for _name in ("log_text", "log_table", "log_image"):
    setattr(RecordingWandb, _name, _recorded(_name))


def test_wandb_has_tables_and_images(picture: Path) -> None:
    logger = RecordingWandb()
    log_all(logger, picture)
    assert logger.calls == [
        ("log_text", {"key": "recipe", "columns": ["text"], "data": [["a: 1\n"]]}),
        ("log_table", {"key": "samples", "columns": ["step", "answer"], "data": [[5, "1|2\n3"], [5, "ü"]], "step": 5}),
        ("log_table", {"key": "samples", "columns": ["step", "answer"], "data": [[6, "later"]], "step": 6}),
        ("log_image", {"key": "curve", "images": [str(picture)], "step": 7}),
    ]


def test_another_logger_is_said_to_get_numbers_alone_and_that_once(
    picture: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _numbers_alone.cache_clear()
    with caplog.at_level("INFO", logger="lightning.pytorch.utilities.rank_zero"):
        log_all(DummyLogger(), picture)
    assert caplog.text.count("DummyLogger gets numbers alone") == 1
