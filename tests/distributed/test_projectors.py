"""Parameters that an objective trains beside the student's, on two gloo ranks: as on one, whole or sharded, one rank
with nothing to grade; resumed; and not in what is exported.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests import warm
from tests.distributed.projector_runs import projected
from tests.distributed.runs import SAVED_STEP, Trace
from tests.tiny import ASSETS

pytestmark = pytest.mark.slow
PROJECTORS = {"projectors.to_student.weight", "projectors.to_teacher.weight", "projectors.query.weight"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """After all fits on two ranks."""
    folder = tmp_path_factory.mktemp("projectors")
    done = warm.run(["tests.distributed.projector_runs", str(folder)], warm.ROOT, timeout=500)
    assert done.returncode == 0, done.stderr[-6000:]
    return folder


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory: pytest.TempPathFactory) -> tuple[Trace, dict[str, Tensor]]:
    """The fit in this process, and where its weights were after the first epoch."""
    folder = tmp_path_factory.mktemp("one")
    trace = projected(folder, "one cma", 1)
    state = torch.load(folder / "one cma.ckpt", weights_only=False)["state_dict"]
    names = {
        name: name.removeprefix("student_with_loss.").removeprefix("student.").removeprefix("losses.0.")
        for name in state
    }
    return trace, {names[name]: tensor for name, tensor in state.items()}


def read(folder: Path, name: str) -> Trace:
    return Trace(**torch.load(folder / f"{name}.pt"))


@pytest.mark.parametrize("name", ["ddp cma", "fsdp2 cma"])
def test_two_ranks_train_projectors_as_one(name: str, folder: Path, one_rank: tuple[Trace, dict[str, Tensor]]) -> None:
    found, (expected, saved) = read(folder, name), one_rank
    assert found.losses == pytest.approx(expected.losses, rel=1e-4)
    assert found.norms == pytest.approx(expected.norms, rel=1e-4)  # over student and projectors
    assert found.weights.keys() == expected.weights.keys() > PROJECTORS
    for key, weight in expected.weights.items():
        moved = (weight - saved[key]).norm()  # over the last two steps
        assert moved > 0, key
        # Steps of Adam are about lr * sign(g) at first: rounding of a gradient near zero may turn one over.
        assert (found.weights[key] - weight).norm() <= 3e-3 * moved, key


def test_a_checkpoint_of_two_ranks_has_whole_projectors_and_resumes(folder: Path) -> None:
    whole, resumed = read(folder, "fsdp2 cma"), read(folder, "resumed cma")
    assert resumed.losses == whole.losses[SAVED_STEP:]
    assert all(torch.equal(resumed.weights[key], weight) for key, weight in whole.weights.items())
    state = torch.load(folder / "fsdp2 cma.ckpt", weights_only=False)["state_dict"]
    saved = {
        name.removeprefix("student_with_loss.").removeprefix("losses.0."): tensor for name, tensor in state.items()
    }
    saved = {name: tensor for name, tensor in saved.items() if not name.startswith("student.")}
    assert saved.keys() == PROJECTORS
    assert all(saved[key].shape == whole.weights[key].shape for key in PROJECTORS)


def test_the_export_has_no_projectors(folder: Path) -> None:
    exported = load_file(folder / "fsdp2 cma-export" / "model.safetensors")
    assert exported.keys() == load_file(ASSETS / "student" / "model.safetensors").keys()
