"""Nothing that is loaded may run code: models, checkpoints, data."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from simct_pl.checkpointing.folder import STATE, CheckpointFolder, Manifest
from simct_pl.commands.main import main
from simct_pl.data.prompts import PromptDataModule, PromptSource
from simct_pl.errors import ModelFolderError, PromptDataError, SimctError
from simct_pl.models.loading import check_model_path, load_causal_lm, load_config
from tests.tiny import ASSETS

OVERLAY = """
trainer: {callbacks+: [{class_path: callbacks.Checkpoint, init_args: {folder: saved}}]}
"""


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.fixture
def crater(tmp_path: Path) -> Path:
    """A file that exists only if code was run; the bomb works, or nothing would be shown by its absence."""
    path = tmp_path / "crater"
    pickle.loads(pickle.dumps(Bomb(path)))
    assert path.exists()
    path.unlink()
    return path


def test_weights_that_are_pickles_are_refused(tmp_path: Path, crater: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(ASSETS / "student", folder, ignore=shutil.ignore_patterns("*.safetensors"))
    torch.save({"x": Bomb(crater)}, folder / "pytorch_model.bin")
    with pytest.raises(ModelFolderError, match=r"Only safetensors"):
        check_model_path("student", str(folder))
    with pytest.raises(ModelFolderError):
        load_causal_lm("student", str(folder), "float32")
    assert not crater.exists()


def folder_with_code(tmp_path: Path, crater: Path) -> Path:
    """A model whose configuration asks for Python code beside it."""
    folder = tmp_path / "own_code"
    shutil.copytree(ASSETS / "student", folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}}
    (folder / "config.json").write_text(json.dumps(config))
    code = (
        f"import pathlib\npathlib.Path({str(crater)!r}).touch()\n"
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own'\n"
        "class OwnModel(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    (folder / "own.py").write_text(code)
    return folder


def test_a_models_own_code_runs_only_where_the_recipe_says_so(
    tmp_path: Path, crater: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = folder_with_code(tmp_path, crater)
    with pytest.raises(ModelFolderError):
        load_config("student", str(folder))
    with pytest.raises(ModelFolderError):
        load_causal_lm("student", str(folder), "float32")
    assert not crater.exists()
    load_config("student", str(folder), trust_remote_code=True)
    assert crater.exists()


def test_a_checkpoint_with_code_is_refused_though_its_manifest_is_right(
    tmp_path: Path, crater: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "0")
    Path("o.yaml").write_text(OVERLAY)
    monkeypatch.setattr("simct_pl.config.lightning_cli.check_same_run", lambda *_: None)
    folder = CheckpointFolder(tmp_path / "saved")
    staging = folder.staging(2)
    folder.prepare(staging)
    torch.save({"state_dict": {}, "x": Bomb(crater)}, staging / STATE)
    folder.commit(staging, lambda size, digest: Manifest(2, 1, size, digest, "", [], {}))
    arguments = ["fit", "--recipe", "quickstart", "--recipe", "o.yaml", "--trainer.logger=false", "--resume"]
    assert main(arguments) == 2
    assert "holds more than tensors" in capsys.readouterr().err
    assert not crater.exists()


@pytest.mark.parametrize("name", ["data.pkl", "data.pt", "data.bin", "data.py", "data.arrow"])
def test_data_comes_from_json_csv_and_parquet_alone(tmp_path: Path, crater: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(pickle.dumps(Bomb(crater)))
    with pytest.raises(SimctError):
        PromptDataModule(PromptSource(str(path))).setup("fit")
    assert not crater.exists()


def test_a_data_set_of_another_format_is_refused_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crater: Path
) -> None:
    """A local folder goes the way of a hub name: one with JSON is read, one with a loading script or a tar is not."""
    monkeypatch.chdir(tmp_path)
    for name, file, content in (
        ("ok", "train.jsonl", b'{"prompt": "x"}\n'),
        ("script", "script.py", f"import pathlib\npathlib.Path({str(crater)!r}).touch()\n".encode()),
        ("text", "train.txt", b"x\n"),
    ):
        Path("sets", name).mkdir(parents=True)
        Path("sets", name, file).write_bytes(content)
    assert [row["prompt"] for row in PromptSource("sets/ok").open()] == ["x"]
    with pytest.raises(PromptDataError):
        PromptSource("sets/script").open()
    with pytest.raises(PromptDataError, match="stored as text; only json, csv and parquet"):
        PromptSource("sets/text").open()
    assert not crater.exists()
