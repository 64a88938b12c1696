"""DSKD in the real loop: its projectors are optimised and checkpointed, and nobody else sees them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from safetensors.torch import load_file

from callbacks import Checkpoint, HFExport
from simct_pl import DSKDCma, DSKDEta
from simct_pl.checkpointing.folder import CheckpointFolder
from simct_pl.losses.dual_space import DualSpaceObjective
from simct_pl.training.module import DistillModule
from tests.tiny import ASSETS, data, distill_module, sampled, trainer

every_kind = pytest.mark.parametrize("kind", [DSKDEta, DSKDCma])
NUM_STEPS = 4


class Cut(L.Callback):
    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == 3:
            raise KeyError("cut off")


def fit(folder: Path, kind: type[DualSpaceObjective], *callbacks: L.Callback, resume: str | None = None) -> Any:
    L.seed_everything(1, verbose=False)
    module = distill_module(objective=kind())
    run = trainer(folder, Checkpoint(every_n_steps=1), *callbacks, max_steps=NUM_STEPS)
    run.fit(module, datamodule=data(), ckpt_path=resume, weights_only=True)
    return module


@every_kind
def test_a_run_with_projectors_goes_on_exactly_and_exports_a_student_alone(
    kind: type[DualSpaceObjective], tmp_path: Path
) -> None:
    start = {
        name: weight.clone() for name, weight in distill_module(objective=kind()).student_with_loss.named_parameters()
    }
    alone: DistillModule = fit(tmp_path / "alone", kind, HFExport(str(tmp_path / "export")))
    with pytest.raises(KeyError):
        fit(tmp_path / "cut", kind, Cut())
    saved = CheckpointFolder(tmp_path / "cut" / "checkpoints").newest_good()
    assert saved is not None
    resumed = fit(tmp_path / "cut", kind, resume=str(saved.state))
    found = dict(resumed.student_with_loss.named_parameters())
    assert {name for name in found if not name.startswith("student.")} == {
        f"losses.0.projectors.{name}.weight"
        for name in ("to_student", "to_teacher", *(["query"] if kind is DSKDCma else []))
    }
    for name, weight in alone.student_with_loss.named_parameters():
        assert torch.equal(found[name], weight), name
        assert not torch.equal(start[name], weight), name
    optimizer = alone.trainer.optimizers[0]
    assert [group["initial_lr"] for group in optimizer.param_groups] == [1e-4, 1e-3]
    exported = load_file(tmp_path / "export" / "model.safetensors")
    assert exported.keys() == load_file(ASSETS / "student" / "model.safetensors").keys()


@every_kind
def test_gradients_do_not_depend_on_the_micro_batch(kind: type[DualSpaceObjective]) -> None:
    module = distill_module(objective=kind())
    rollouts = sampled(module)
    whole, _ = module.loss_sum(rollouts, module.align(rollouts))
    whole.backward()
    expected = {name: p.grad.clone() for name, p in module.student_with_loss.named_parameters() if p.grad is not None}
    module.zero_grad()
    for rollout in rollouts:
        loss, _ = module.loss_sum([rollout], module.align([rollout]))
        loss.backward()
    loss, _ = module.loss_sum([], module.align([]))  # of a rank that has nothing to do
    loss.backward()
    for name, parameter in module.student_with_loss.named_parameters():
        assert parameter.grad is not None
        scale = float(expected[name].abs().max())
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-3, atol=1e-4 * scale, msg=name)


@every_kind
def test_a_forward_without_gradients_keeps_none(kind: type[DualSpaceObjective]) -> None:
    module = distill_module(objective=kind())
    rollouts = sampled(module, 2)
    with torch.no_grad():
        loss, stats = module.loss_sum(rollouts, module.align(rollouts))
    assert not loss.requires_grad
    assert float(loss) == pytest.approx(float(stats.loss_U.sum()))
    assert float(loss) > 0
