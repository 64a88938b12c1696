"""Held-out means: what one rank saw is reported by all, and weighs nothing where it was not seen."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from simct_pl.training.held_out import HeldOutMetrics
from tests.tiny import data, trainer, unloaded_module


def test_a_metric_that_another_rank_uses_is_reported_and_changes_no_mean() -> None:
    metrics = HeldOutMetrics()
    metrics.update_loss(3.0, 2)
    metrics.update_bits(8.0, 4)
    names = [*metrics.means, "text_kl"]
    assert [name for name, used in zip(names, metrics.in_use, strict=True) if used] == ["loss", "bits_per_byte"]
    metrics.use([True] * len(names))
    assert all(metrics.in_use)
    found = metrics.compute()
    assert found["eval/text_kl"] == found["eval/text_kl_coverage"] == 0
    assert float(found["eval/loss"]) == pytest.approx(1.5)
    assert float(found["eval/bits_per_byte"]) == pytest.approx(2.0)
    metrics.reset()
    assert not any(metrics.in_use)


def test_a_fit_may_follow_a_validation(tmp_path: Path) -> None:
    """Lightning validates in inference mode, unless told otherwise; a fit's own validations are not."""
    module, run = unloaded_module(), trainer(tmp_path, inference_mode=True, val_check_interval=1)
    run.validate(module, datamodule=data(), verbose=False)
    run.fit(module, datamodule=data())
    [found] = run.validate(module, datamodule=data(), verbose=False)
    assert math.isfinite(found["eval/loss"])
    assert found["eval/loss"] == pytest.approx(module.history[-2].metrics["eval/loss"], rel=1e-5)  # at the same step
