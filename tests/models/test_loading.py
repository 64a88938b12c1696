"""Model folders that cannot be loaded, and what names one."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from simct_pl.commands.transplant import transplant
from simct_pl.errors import ModelFolderError
from simct_pl.models.loading import load_causal_lm, weights_id
from tests.tiny import ASSETS


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(ASSETS / "student", tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("num_bytes", [0, 1000])
def test_weights_that_are_not_whole_are_named(folder: Path, num_bytes: int) -> None:
    os.truncate(folder / "model.safetensors", num_bytes)
    with pytest.raises(ModelFolderError, match=r"student '.*model' cannot be loaded"):
        load_causal_lm("student", str(folder), "float32")
    with pytest.raises(ModelFolderError, match=r"model '.*model' cannot be loaded"):
        transplant(folder, str(ASSETS / "teacher"), folder.with_name("out"))
    assert not folder.with_name("out").exists()


def test_weights_have_a_name_of_their_own(folder: Path) -> None:
    before = weights_id(str(folder))
    assert before == weights_id(str(ASSETS / "student")) != weights_id(str(ASSETS / "teacher"))
    os.truncate(folder / "model.safetensors", 1000)
    assert weights_id(str(folder)) != before
    assert weights_id("org/model") == ""
