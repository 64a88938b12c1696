"""Held-out means: what one rank saw is reported by all, and weighs nothing where it was not seen."""

from __future__ import annotations

import pytest

from simct_pl.training.held_out import HeldOutMetrics


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
