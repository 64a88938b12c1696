"""Students that ranks share (FSDP2), on two gloo processes: every fit of tests/distributed/runs.py against one process
with the same global batch, to fp32 rounding.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from callbacks import HFExport
from simct_pl import TokenConditionalLoss
from simct_pl.models.adapter_folder import adapter_state, write_adapter
from simct_pl.tasks.arithmetic import TotalGrader
from tests import warm
from tests.distributed.runs import BY_TEACHER, LORA, RAGGED, SAVED_STEP, HalfDeaf, Trace, fit
from tests.models.test_lora import move
from tests.tiny import ASSETS, distill_module, unloaded_module

pytestmark = pytest.mark.slow
EXACT = ("ddp", "fsdp2", "everything", "hsdp", "half deaf", "by teacher", "by teacher ddp")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sharded")


@pytest.fixture(scope="module")
def untied(folder: Path) -> str:
    """The quickstart's student with a head of its own."""
    path = folder / "untied"
    shutil.copytree(ASSETS / "student", path)
    model = AutoModelForCausalLM.from_pretrained(path)
    model.config.tie_word_embeddings = False
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    model.save_pretrained(path)
    assert "lm_head.weight" in load_file(path / "model.safetensors")
    return str(path)


@pytest.fixture(scope="module")
def adapter(folder: Path) -> Path:
    """One that has been trained."""
    module = distill_module(lora=LORA)
    move(module.student)
    path = folder / "adapter"
    path.mkdir()
    write_adapter(module.student, adapter_state(module.student), path)
    return path


@pytest.fixture(scope="module")
def two_ranks(folder: Path, untied: str, adapter: Path) -> Path:
    """The folder, after all fits on two ranks."""
    done = warm.run(["tests.distributed.runs", str(folder), untied], warm.ROOT, timeout=500)
    assert done.returncode == 0, done.stderr[-6000:]
    return folder


@pytest.fixture(scope="module")
def one_rank(folder: Path, untied: str) -> Callable[[str], Trace]:
    """The fit of a name in this process, unsharded."""

    @cache
    def trace(name: str) -> Trace:
        overrides: dict[str, Any] = {
            "everything": {"objective": TokenConditionalLoss(), "anchor_weight": 5.0},
            "hsdp": {"student": untied},
            "half deaf": {"kind": HalfDeaf},
            "by teacher": BY_TEACHER,
            "lora": {"student": str(folder / "adapter"), "anchor_weight": 5.0},
        }.get(name, {})
        module = unloaded_module(grader=TotalGrader(), **overrides)
        exports = {"plain": [("export", False)], "lora": [("merged", False), ("adapter", True)]}.get(name, [])
        writers = [HFExport(str(folder / f"one {name}-{kind}"), adapter=adapter) for kind, adapter in exports]
        return fit(folder, f"one {name}", module, exports=writers)

    of_their_own = ("everything", "hsdp", "half deaf", "lora", "by teacher")
    return lambda name: trace(name if (name := name.removesuffix(" ddp")) in of_their_own else "plain")


def read(folder: Path, name: str) -> Trace:
    return Trace(**torch.load(folder / f"{name}.pt"))


def distance(found: dict[str, Tensor], expected: dict[str, Tensor], scale: dict[str, Tensor]) -> float:
    """The largest difference of any tensor, as a share of its scale."""
    assert found.keys() == expected.keys()
    return max(float((found[name] - expected[name]).norm() / scale[name].norm()) for name in expected)


def moved(trace: Trace, student: Path) -> dict[str, Tensor]:
    """How far training took each weight."""
    before = load_file(student / "model.safetensors")
    return {name: weight - before[name] for name, weight in trace.weights.items()}


@pytest.mark.parametrize("name", EXACT)
def test_two_ranks_train_as_one(name: str, two_ranks: Path, one_rank: Callable[[str], Trace], untied: str) -> None:
    found, expected = read(two_ranks, name), one_rank(name)
    assert found.losses == pytest.approx(expected.losses, rel=1e-4)
    assert found.norms == pytest.approx(expected.norms, rel=1e-4)
    for one, other in zip(found.text_kl, expected.text_kl, strict=True):
        assert one == pytest.approx(other, rel=1e-3)
    for one, other in zip(found.spans, expected.spans, strict=name.endswith("ddp")):
        assert one == pytest.approx(other, rel=1e-3, abs=1e-4)
    assert distance(found.gradients, expected.gradients, expected.gradients) < 1e-4
    # The first steps of Adam are lr * sign(g): rounding of a gradient near zero may turn one over.
    student = Path(untied) if name == "hsdp" else ASSETS / "student"
    assert distance(found.weights, expected.weights, moved(expected, student)) < 1e-3
    if name != "hsdp":
        assert any(one != other for one, other in found.num_groups)  # ranks had unequal numbers of micro-batches


@pytest.mark.parametrize("name", EXACT)
def test_held_out_metrics_when_one_rank_has_all_prompts(
    name: str, two_ranks: Path, one_rank: Callable[[str], Trace]
) -> None:
    found, expected = read(two_ranks, name).held_out, one_rank(name).held_out
    assert found.keys() == expected.keys() >= {"eval/loss", "eval/bits_per_byte", "eval/accuracy"}
    assert found == pytest.approx(expected, rel=1e-3)


def test_a_rank_on_which_nothing_aligns_changes_the_loss(one_rank: Callable[[str], Trace]) -> None:
    """So that "half deaf" above is a case of its own."""
    assert one_rank("half deaf").losses[0] < 0.9 * one_rank("plain").losses[0]


@pytest.mark.parametrize("name", ["lora", "lora ddp", "lora resumed"])
def test_adapters_on_two_ranks_are_trained_as_on_one(
    name: str, two_ranks: Path, one_rank: Callable[[str], Trace]
) -> None:
    found, expected = read(two_ranks, name), one_rank("lora")
    skipped = SAVED_STEP if name == "lora resumed" else 0
    assert found.losses == pytest.approx(expected.losses[skipped:], rel=1e-4)
    assert found.norms == pytest.approx(expected.norms[skipped:], rel=1e-4)
    trained = {name for name, moved in moved_since_start(expected, two_ranks).items() if moved.any()}
    assert trained == set(expected.gradients)  # of adapters, and of the norm that is trained whole
    assert any("norm" in one for one in trained)
    if not skipped:
        assert distance(found.gradients, expected.gradients, expected.gradients) < 1e-4
    scale = {one: step for one, step in moved_since_start(expected, two_ranks).items() if one in trained}
    weights = [{one: trace.weights[one] for one in trained} for trace in (found, expected)]
    assert distance(*weights, scale) < 1e-3
    rest = expected.weights.keys() - trained
    assert all(torch.equal(found.weights[one], expected.weights[one]) for one in rest)


def moved_since_start(trace: Trace, folder: Path) -> dict[str, Tensor]:
    start = dict(distill_module(student=str(folder / "adapter")).student.named_parameters())
    return {name: weight - start[name].detach() for name, weight in trace.weights.items()}


def test_a_checkpoint_of_adapters_has_no_base(two_ranks: Path) -> None:
    state = torch.load(two_ranks / "lora.ckpt", weights_only=True)["state_dict"]
    assert all("lora_" in name or name.endswith("norm.weight") for name in state)  # the norms are trained whole
    assert len(state) == len(read(two_ranks, "lora").gradients)


@pytest.mark.parametrize("kind", ["merged", "adapter"])
def test_exports_of_shared_adapters_are_those_of_whole_ones(
    kind: str, two_ranks: Path, one_rank: Callable[[str], Trace]
) -> None:
    one_rank("lora")
    found, expected = two_ranks / f"lora-{kind}", two_ranks / f"one lora-{kind}"
    assert sorted(path.name for path in found.iterdir()) == sorted(path.name for path in expected.iterdir())
    file = "adapter_model.safetensors" if kind == "adapter" else "model.safetensors"
    weights, whole = load_file(found / file), load_file(expected / file)
    assert weights.keys() == whole.keys()
    assert all(torch.allclose(weights[name], whole[name], atol=1e-4) for name in whole)
    assert any(not torch.equal(weights[name], whole[name]) for name in whole)  # two fits, and not one file


def test_fp32_adapters_in_front_of_bfloat16_weights_are_shared(two_ranks: Path) -> None:
    found = read(two_ranks, "lora bfloat16")
    assert all(math.isfinite(value) for value in (*found.losses, *found.norms))
    kinds = {"lora_" in name: weight.dtype for name, weight in found.weights.items()}
    assert kinds == {True: torch.float32, False: torch.bfloat16}


def test_products_in_bfloat16_are_finite_and_near(two_ranks: Path, one_rank: Callable[[str], Trace]) -> None:
    found, expected = read(two_ranks, "bfloat16"), one_rank("plain")
    assert all(math.isfinite(value) for value in (*found.losses, *found.norms))
    assert found.losses[0] == pytest.approx(expected.losses[0], rel=0.05)
    assert 1e-4 < distance(found.gradients, expected.gradients, expected.gradients) < 0.2  # rounded, and no more
    assert all(weight.dtype == torch.float32 for weight in found.weights.values())  # what AdamW steps


def test_the_export_of_a_sharded_student_is_that_of_a_whole_one(
    two_ranks: Path, one_rank: Callable[[str], Trace]
) -> None:
    one_rank("plain")
    found, expected = two_ranks / "fsdp2-export", two_ranks / "one plain-export"
    names = sorted(path.name for path in expected.iterdir())
    assert sorted(path.name for path in found.iterdir()) == names
    for name in names:
        if name not in ("model.safetensors", "README.md"):  # a card has its folder's name
            assert (found / name).read_bytes() == (expected / name).read_bytes()
    weights, whole = load_file(found / "model.safetensors"), load_file(expected / "model.safetensors")
    assert {name: w.dtype for name, w in weights.items()} == {name: w.dtype for name, w in whole.items()}
    trained = read(two_ranks, "fsdp2").weights
    assert all(torch.equal(weights[name], trained[name]) for name in trained)


def test_a_checkpoint_resumes_on_two_ranks_and_on_one(two_ranks: Path, one_rank: Callable[[str], Trace]) -> None:
    """Saved by two ranks after an epoch; the rest is that of the run that was not interrupted."""
    uninterrupted = read(two_ranks, "fsdp2")
    module = unloaded_module(grader=TotalGrader(), **RAGGED)
    fit(two_ranks, "resumed on 1", module, resume=two_ranks / "fsdp2.ckpt")
    scale = moved(one_rank("plain"), ASSETS / "student")
    for name in ("resumed on 1", "resumed on 2"):
        resumed = read(two_ranks, name)
        assert resumed.losses == pytest.approx(uninterrupted.losses[SAVED_STEP:], rel=1e-4)
        assert distance(resumed.weights, uninterrupted.weights, scale) < 1e-3
