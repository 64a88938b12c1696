"""When ranks exchange gradients. That they then train as one rank is tests/distributed's."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any, cast

import lightning as L
import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from simct_pl.training.collectives import exchange_gradients, gather_scalars, pad_to_max_over_ranks


def test_only_ddp_puts_an_exchange_off(monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = nullcontext()
    monkeypatch.setattr(DDPStrategy, "block_backward_sync", lambda self: blocked)
    ddp = cast(Any, SimpleNamespace(strategy=DDPStrategy()))
    assert exchange_gradients(ddp, now=False) is blocked
    assert exchange_gradients(ddp, now=True) is not blocked
    one_device = cast(Any, SimpleNamespace(strategy=SingleDeviceStrategy()))
    with exchange_gradients(one_device, now=False):
        pass


def test_a_lone_rank_has_its_own_value(tmp_path: Any) -> None:
    module = L.LightningModule()
    module.trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, default_root_dir=tmp_path)
    values_R = gather_scalars(module, 2.5)
    assert values_R.dtype == torch.float64
    assert values_R.tolist() == [2.5]
    assert gather_scalars(module, [1.0, 2.0]).tolist() == [[1.0, 2.0]]


def test_a_rank_with_fewer_items_gets_idle_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    module = L.LightningModule()
    monkeypatch.setattr(module, "all_gather", lambda own: torch.stack([own, torch.full_like(own, 3)]))
    assert pad_to_max_over_ranks(module, [[1], [2]], idle=[]) == [[1], [2], []]
    assert pad_to_max_over_ranks(module, [[1], [2], [3]], idle=[]) == [[1], [2], [3]]
    assert pad_to_max_over_ranks(module, [], idle="idle") == ["idle"] * 3
