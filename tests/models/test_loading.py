"""Model folders that cannot be loaded, and what names one."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from simct_pl.commands.transplant import transplant
from simct_pl.errors import MissingFileError, ModelFolderError
from simct_pl.models.loading import context_length, load_causal_lm, no_room, weights_id
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


def test_a_context_is_asked_of_a_model_folder(folder: Path) -> None:
    for weights in folder.glob("*.safetensors"):
        weights.unlink()  # the configuration alone is read
    assert context_length("student", str(folder)) == 128
    with pytest.raises(MissingFileError, match=r"teacher '.*missing' does not exist"):
        context_length("teacher", str(folder.with_name("missing")))
    (folder / "config.json").unlink()
    with pytest.raises(ModelFolderError, match=r"student '.*model' is not a model folder"):
        context_length("student", str(folder))


def test_a_prompt_and_its_response_may_fill_the_context_and_no_more() -> None:
    assert no_room("Prompt 7", 28, 100, 128) is None
    assert no_room("Prompt 7", 10**9, 1, None) is None
    assert no_room("Prompt 7", 29, 100, 128, fix="Stop.") == (
        "Prompt 7: 29 tokens of prompt and max_tokens=100 exceed the student's context of 128. Stop."
    )
