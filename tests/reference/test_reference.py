"""The reference against itself: loops against dense algebra, autograd against finite differences."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch

from tests.reference.dense import dense_loss
from tests.reference.scenes import Scene, random_scene
from tests.reference.simct import (
    REST,
    UNIT,
    Variant,
    is_one_shared_token,
    readings,
    response_loss,
    true_logprobs,
)
from tests.reference.vocabulary import STOP, Side, partition, shared_candidates

SCORES = ("mean_logprob", "mean_logit", "sum_logprob")
PREFIXES = ("keep", "mask", "subtract", "marginal")
DIVERGENCES = ("rkl", "kl", "jsd", "skl", "srkl", "akl", "tvd", "top1_ce")
CANDIDATE_SETS = [(score, prefix, False) for score, prefix in itertools.product(SCORES, PREFIXES)] + [
    ("sum_logprob", prefix, True) for prefix in PREFIXES[1:]
]
SEEDS = (0, 3)


def loop_loss(scene: Scene, student_logits_SV: np.ndarray, variant: Variant) -> float:
    return response_loss(
        scene.student,
        scene.teacher,
        scene.student_ids,
        scene.teacher_ids,
        student_logits_SV,
        scene.teacher_logits_TV.numpy(),
        variant,
    )


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize(("score", "prefix", "rest"), CANDIDATE_SETS)
def test_loops_equal_dense_algebra(score: str, prefix: str, rest: bool, divergence: str) -> None:
    variant = Variant(score, prefix, rest, divergence)
    for seed in SEEDS:
        scene = random_scene(seed)
        dense = dense_loss(
            scene.student, scene.teacher, scene.units, scene.student_logits_SV, scene.teacher_logits_TV, variant
        )
        assert loop_loss(scene, scene.student_logits_SV.numpy(), variant) == pytest.approx(float(dense), rel=1e-9)


@pytest.mark.parametrize("divergence", [name for name in DIVERGENCES if name != "akl"])
@pytest.mark.parametrize(("score", "prefix", "rest"), CANDIDATE_SETS)
def test_dense_gradient_equals_finite_differences_of_the_loops(
    score: str, prefix: str, rest: bool, divergence: str
) -> None:
    """akl is left out: its weights are constants for the gradient, not for a finite difference."""
    variant = Variant(score, prefix, rest, divergence)
    scene = random_scene(4, num_pieces=5)
    logits = scene.student_logits_SV.clone().requires_grad_()
    dense_loss(scene.student, scene.teacher, scene.units, logits, scene.teacher_logits_TV, variant).backward()
    direction = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ahead, behind = (
        loop_loss(scene, (scene.student_logits_SV + step * direction).numpy(), variant) for step in (1e-6, -1e-6)
    )
    assert (ahead - behind) / 2e-6 == pytest.approx(float((logits.grad * direction).sum()), rel=1e-6)


def test_every_kind_of_unit_turns_up() -> None:
    kinds = set()
    for seed in range(8):
        scene = random_scene(seed)
        shared = shared_candidates(scene.student, scene.teacher)
        for unit in scene.units:
            kinds.add(
                (
                    unit.is_stop,
                    is_one_shared_token(unit, shared),
                    min(len(unit.student_ids), 2),
                    min(len(unit.teacher_ids), 2),
                )
            )
    assert kinds == {
        (True, True, 1, 1),
        (False, True, 1, 1),
        (False, False, 1, 2),
        (False, False, 2, 1),
        (False, False, 2, 2),
    }


def test_no_finer_partition_is_jointly_expressible() -> None:
    """Theorem 1: cut any unit anywhere, and one of the two sides has no token boundary at the cut."""
    for seed in range(8):
        scene = random_scene(seed)
        ends = []
        for side, ids in ((scene.student, scene.student_ids), (scene.teacher, scene.teacher_ids)):
            lengths = [len(side.tokens[token_id] or b"") for token_id in ids]
            ends.append(set(itertools.accumulate(lengths)))
        unit_ends = {unit.byte_start + len(unit.text) for unit in scene.units}
        assert unit_ends == ends[0] & ends[1]


def test_units_spell_the_same_bytes_on_both_sides() -> None:
    for seed in range(8):
        scene = random_scene(seed)
        for unit in scene.units:
            spelt = [
                b"".join(side.tokens[token_id] or b"" for token_id in ids)
                for side, ids in ((scene.student, unit.student_ids), (scene.teacher, unit.teacher_ids))
            ]
            assert spelt[0] == spelt[1] == unit.text


def test_marginal_holds_every_event_once() -> None:
    """All bytes shared: the candidates' true probabilities sum to 1 on every row, the unit inside them."""
    letters = [bytes([byte]) for byte in range(256)]
    student = Side((*letters, b"20", b"202", b"ab", None), stop_ids=(259,))
    teacher = Side((*letters, b"02", b"abb", None, None), stop_ids=(258, 259))
    student_ids, teacher_ids = [257, 258, 98, 259], [50, 256, 257, 258]
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(4, 260)) * 3, rng.normal(size=(4, 260)) * 3
    shared = shared_candidates(student, teacher)
    variant = Variant("sum_logprob", "marginal")
    units = partition(student, teacher, student_ids, teacher_ids)
    assert [unit.text for unit in units] == [b"202", b"abb", b""]
    for unit in units:
        for reading in readings(student, teacher, unit, *logits):
            logs = true_logprobs(reading, unit, shared, variant)
            assert (UNIT in logs) is not unit.is_stop
            assert math.fsum(map(math.exp, logs.values())) == pytest.approx(1, rel=1e-12)


def test_rest_completes_every_row() -> None:
    for seed, prefix in itertools.product(SEEDS, PREFIXES[1:]):
        scene = random_scene(seed)
        shared = shared_candidates(scene.student, scene.teacher)
        logits = scene.student_logits_SV.numpy(), scene.teacher_logits_TV.numpy()
        for unit in scene.units:
            for reading in readings(scene.student, scene.teacher, unit, *logits):
                logs = true_logprobs(reading, unit, shared, Variant("sum_logprob", prefix, rest=True))
                assert logs[REST] > -math.inf
                assert math.fsum(map(math.exp, logs.values())) == pytest.approx(1, rel=1e-12)


def test_stop_is_every_stop_id() -> None:
    scene = next(scene for scene in map(random_scene, range(20)) if scene.units[-1].is_stop)
    unit = scene.units[-1]
    shared = shared_candidates(scene.student, scene.teacher)
    logits = scene.student_logits_SV.numpy(), scene.teacher_logits_TV.numpy()
    for side, rows, reading in zip(
        (scene.student, scene.teacher), logits, readings(scene.student, scene.teacher, unit, *logits), strict=True
    ):
        probs = np.exp(rows[-1]) / np.exp(rows[-1]).sum()
        logs = true_logprobs(reading, unit, shared, dataclasses.replace(Variant(), prefix="keep"))
        assert math.exp(logs[STOP]) == pytest.approx(probs[list(side.stop_ids)].sum())
