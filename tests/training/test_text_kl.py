"""Text KL against both models' whole logits, and its spread against what repeated draws do."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from simct_pl import ALMLoss, DSKDEta, GOLDLoss, OneToOneAligner, SharedVocabLoss, SimCTLoss, XTokenPKL
from simct_pl.training.module import DistillModule
from simct_pl.training.text_kl import NUM_SUMS, TextKL, TextKLMetric, text_kl_sums
from simct_pl.training.unit_stats import StatsWriter
from simct_pl.types import Rollout, UnitAlignment, UnitStats
from tests.tiny import distill_module, sampled


def measured(module: DistillModule, rollouts: list[Rollout]) -> tuple[Tensor, list[UnitAlignment]]:
    module.setup("fit")
    aligned = module.align(rollouts)
    _, stats = module.loss_sum(rollouts, aligned)
    return text_kl_sums(aligned.alignments, aligned.split(stats)), aligned.alignments


@torch.no_grad()
def from_whole_logits(module: DistillModule, rollout: Rollout, alignment: UnitAlignment) -> tuple[float, int]:
    """(log p_student - log p_teacher, bytes) of the units of a response, by one forward of each model on it alone."""
    assert module.teacher is not None
    sides = [
        (module.student, rollout.prompt_ids, rollout.response_ids, 0),
        (
            module.teacher.model,
            module.pair.teacher.render_prompt(rollout.prompt.messages),
            alignment.teacher_ids_T.tolist(),
            2,
        ),
    ]
    logs = []
    for model, prompt, response, column in sides:
        logp = model(torch.tensor([[*prompt, *response]])).logits[0].double().log_softmax(-1)
        inside = [i for unit in alignment.units_U6.tolist() for i in range(unit[column], unit[column + 1])]
        logs.append(sum(float(logp[len(prompt) - 1 + i, response[i]]) for i in inside))
    return logs[0] - logs[1], sum(int(unit[5] - unit[4]) for unit in alignment.units_U6)


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"objective": SimCTLoss()},
        {"objective": GOLDLoss()},
        {"objective": ALMLoss()},
        {"objective": XTokenPKL()},
        {"objective": SharedVocabLoss(), "aligner": OneToOneAligner()},
        {"objective": DSKDEta()},
    ],
    ids=["marginal", "paper", "gold", "alm", "xtoken", "exact", "two spaces"],
)
def test_it_is_the_difference_of_both_models_log_probabilities(overrides: dict[str, Any]) -> None:
    """Whatever the objective computes, and whatever the aligner leaves out."""
    module = distill_module(chunk_tokens=7, **overrides)
    rollouts = sampled(module)
    sums, alignments = measured(module, rollouts)
    each = [from_whole_logits(module, *pair) for pair in zip(rollouts, alignments, strict=True)]
    found = TextKL.of(sums)
    gap, counted = (sum(values) for values in zip(*each, strict=True))
    assert found.nats_per_byte == pytest.approx(gap / counted, rel=1e-4)
    assert found.coverage == pytest.approx(counted / sum(len(alignment.text) for alignment in alignments))
    assert (found.coverage == 1) == (not isinstance(module.aligner, OneToOneAligner))
    residuals = [g - gap / counted * b for g, b in each]
    num = len(each)
    by_hand = math.sqrt(num * sum(r * r for r in residuals) / (num - 1)) / counted
    assert found.error == pytest.approx(by_hand, rel=1e-3)


def test_ranks_and_batches_add_up() -> None:
    module = distill_module()
    rollouts = sampled(module)
    whole, _ = measured(module, rollouts)
    metric = TextKLMetric()
    for part in (rollouts[:1], rollouts[1:4], rollouts[4:]):
        metric.update(measured(module, part)[0])
    torch.testing.assert_close(metric.compute(), whole, rtol=1e-6, atol=1e-5)


def one_response(num_bytes: int, student: float, teacher: float) -> tuple[UnitAlignment, UnitStats]:
    alignment = UnitAlignment(
        np.array([[0, 1, 0, 1, 0, num_bytes]]),
        np.zeros(1, int),
        np.zeros(1, int),
        b"x" * num_bytes,
        False,
        np.array([True]),
    )
    like = StatsWriter(1, 1, torch.zeros(())).stats
    return alignment, replace(
        like, token_logprobs_N=torch.tensor([student]), teacher_logprobs_U=torch.tensor([teacher])
    )


def test_the_error_is_the_spread_of_repeated_draws() -> None:
    """Batches of 200 responses whose lengths vary: the estimates scatter as wide as each says that it does."""
    rng, estimates = np.random.default_rng(0), []
    for _ in range(300):
        lengths = rng.integers(5, 40, 200)
        gaps = 0.3 * lengths + rng.normal(0, 2, 200)
        pairs = [one_response(int(b), float(g), 0.0) for b, g in zip(lengths, gaps, strict=True)]
        estimates.append(TextKL.of(text_kl_sums(*zip(*pairs, strict=True))))
    values = np.array([one.nats_per_byte for one in estimates])
    assert values.mean() == pytest.approx(0.3, abs=0.002)
    assert np.mean([one.error for one in estimates]) == pytest.approx(values.std(ddof=1), rel=0.1)


def test_what_no_unit_covers_is_said() -> None:
    """A response without a unit is no sample, and its bytes lower the coverage."""
    covered, stats = one_response(6, -1.0, -4.0)
    lost = replace(covered, units_U6=np.zeros((0, 6), int), supervised_U=np.zeros(0, bool), text=b"xy")
    nothing = StatsWriter(0, 0, torch.zeros(())).stats
    found = TextKL.of(text_kl_sums([covered, lost], [stats, nothing]))
    assert (found.nats_per_byte, found.coverage) == pytest.approx((0.5, 0.75))
    assert math.isnan(found.error)
    alone = TextKL.of(text_kl_sums([lost], [nothing]))
    assert (alone.nats_per_byte, alone.coverage) == (0, 0)
    assert TextKL.of(torch.zeros(NUM_SUMS)).nats_per_byte == 0
