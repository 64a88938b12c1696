"""Supervised fits on two gloo processes against one process with the same global batch, to fp32 rounding."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests import warm
from tests.distributed.supervised_runs import fit
from tests.tiny import ASSETS

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All fits: two ranks in processes of their own, one rank in this one."""
    made = tmp_path_factory.mktemp("supervised")
    done = warm.run(["tests.distributed.supervised_runs", str(made)], warm.ROOT, timeout=500)
    assert done.returncode == 0, done.stderr[-6000:]
    fit(made, "one")
    return made


@pytest.mark.parametrize("name", ["ddp", "fsdp2"])
def test_two_ranks_train_as_one(name: str, folder: Path) -> None:
    found, expected = torch.load(folder / f"{name}.pt"), torch.load(folder / "one.pt")
    assert len(expected["losses"]) == 3
    assert found["losses"] == pytest.approx(expected["losses"], rel=1e-4)
    assert found["held_out"] == pytest.approx(expected["held_out"], rel=1e-3)
    assert found["held_out"].keys() == {"eval/loss", "eval/bits_per_byte", "eval/accuracy"}
    before = load_file(ASSETS / "student/model.safetensors")
    for key, weight in expected["weights"].items():
        moved = (weight - before[key]).norm()
        assert moved > 0
        assert (found["weights"][key] - weight).norm() < 1e-3 * moved, key


@pytest.mark.parametrize("name", ["ddp", "fsdp2"])
def test_the_export_is_what_was_trained(name: str, folder: Path) -> None:
    exported = load_file(folder / f"{name}-export/model.safetensors")
    trained = torch.load(folder / f"{name}.pt")["weights"]
    assert trained.keys() == exported.keys()
    assert all(torch.equal(trained[key], exported[key]) for key in trained)
