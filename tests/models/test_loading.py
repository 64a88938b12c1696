"""Model folders that cannot be loaded, and what names one."""

from __future__ import annotations

import os
import shutil
from functools import partial
from pathlib import Path

import pytest

from simct_pl.commands.transplant import transplant
from simct_pl.errors import MissingFileError, ModelFolderError
from simct_pl.models.loading import (
    check_model_path,
    context_length,
    load_causal_lm,
    load_config,
    no_room,
    weights_id,
)
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


@pytest.mark.parametrize("with_weights", [False, True])
@pytest.mark.parametrize(
    ("config", "base"),
    [
        ('{"peft_type": "LORA", "base_model_name_or_path": "org/base"}', "org/base"),
        ('{"base_model_name_or_path": null}', "its base model"),
        ("[]", "its base model"),
        ("{", "its base model"),
    ],
)
def test_an_adapter_is_called_one_and_told_how_to_become_a_model(
    folder: Path, config: str, base: str, with_weights: bool
) -> None:
    (folder / "adapter_config.json").write_text(config)
    (folder / "adapter_model.safetensors").write_bytes(b"")
    if not with_weights:
        (folder / "config.json").unlink()
        (folder / "model.safetensors").unlink()
    for load in (check_model_path, load_config, partial(load_causal_lm, dtype=None)):
        with pytest.raises(ModelFolderError, match=rf"teacher '.*' is an adapter.*{base}.*merge_and_unload"):
            load("teacher", str(folder))


def test_what_is_no_model_folder_is_told_what_it_is(tmp_path: Path, folder: Path) -> None:
    def refusal(path: Path) -> str:
        with pytest.raises(ModelFolderError, match=r"no config\.json") as raised:
            check_model_path("student", str(path))
        return str(raised.value)

    other = tmp_path / "other"
    other.mkdir()
    assert refusal(other).endswith("it has no config.json.")
    (other / "params.json").write_text("{}")
    assert "maker's own layout" in refusal(other)
    (other / "model.gguf").touch()
    assert "convert-gguf" in refusal(other)
    assert "convert-gguf" in refusal(other / "model.gguf")
    assert "give the folder it is in" in refusal(folder / "model.safetensors")
    assert "There is one in model; give that folder" in refusal(folder.parent)


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
