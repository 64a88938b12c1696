"""The student's weights for vLLM: every name of every parameter, and a folder that is whole or not there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, PreTrainedModel

from simct_pl.errors import ExportError
from simct_pl.rollout import vllm_weights
from simct_pl.rollout.vllm_weights import named_weights, write_weights
from tests.tiny import distill_module


@pytest.fixture(scope="module")
def student() -> PreTrainedModel:
    return distill_module().student


@pytest.mark.parametrize("shard_bytes", [1, 100_000, 2**30])
def test_every_name_of_a_parameter_is_written_once(student: PreTrainedModel, shard_bytes: int, tmp_path: Path) -> None:
    folder = write_weights(student, tmp_path / "weights", shard_bytes)
    files = [load_file(path) for path in sorted(folder.glob("*.safetensors"))]
    names = [name for file in files for name in file]
    own = dict(student.named_parameters(remove_duplicate=False))
    assert sorted(names) == sorted(own)
    assert "lm_head.weight" in names
    assert (len(files) == 1) == (shard_bytes == 2**30)
    assert all(torch.equal(tensor, own[name]) for file in files for name, tensor in file.items())
    assert AutoConfig.from_pretrained(folder).tie_word_embeddings == student.config.tie_word_embeddings


def test_the_weights_below_a_module_come_in_a_row(student: PreTrainedModel) -> None:
    names = [name for name, _ in named_weights(student)]
    assert names[:2] == ["lm_head.weight", "model.embed_tokens.weight"]
    assert all(name.startswith("model.") for name in names[1:])


def test_nothing_is_left_of_weights_that_could_not_be_written(
    student: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(vllm_weights, "save_file", no_space)
    with pytest.raises(ExportError, match="No space left"):
        write_weights(student, tmp_path / "weights")
    assert list(tmp_path.iterdir()) == []
