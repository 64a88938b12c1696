"""distillation_loss against the slow reference: value and gradient of every named variant, and its error messages."""

from __future__ import annotations

import dataclasses
import itertools
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor

from simct_pl.losses.api import distillation_loss
from tests.reference.bridge import alignment_of, scene_inputs, shared_vocab_of
from tests.reference.dense import dense_divergence, dense_loss
from tests.reference.scenes import Scene, random_scene
from tests.reference.simct import Variant, readings, response_loss, teacher_candidate_mass, unit_losses
from tests.reference.vocabulary import Side, shared_candidates

SCORES = ("mean_logprob", "mean_logit", "sum_logprob")
PREFIXES = ("keep", "mask", "subtract", "marginal")
DIVERGENCES = ("rkl", "kl", "jsd", "skl", "srkl", "akl", "tvd", "top1_ce")
CANDIDATE_SETS = [(score, prefix, False) for score, prefix in itertools.product(SCORES, PREFIXES)] + [
    ("sum_logprob", prefix, True) for prefix in PREFIXES[1:]
]
SEEDS = (0, 3)

every_variant = pytest.mark.parametrize(
    "variant",
    [Variant(*candidate_set, divergence) for candidate_set in CANDIDATE_SETS for divergence in DIVERGENCES],
    ids=lambda v: f"{v.score}-{v.prefix}{'-rest' if v.rest else ''}-{v.divergence}",
)
every_candidate_set = pytest.mark.parametrize(
    "variant",
    [Variant(*candidate_set) for candidate_set in CANDIDATE_SETS],
    ids=lambda v: f"{v.score}-{v.prefix}{'-rest' if v.rest else ''}",
)


@cache
def scene_of(seed: int) -> Scene:
    """A scene whose logits are exact in float32, so that every precision reads the same numbers."""
    scene = random_scene(seed)
    return dataclasses.replace(
        scene,
        student_logits_SV=scene.student_logits_SV.float().double(),
        teacher_logits_TV=scene.teacher_logits_TV.float().double(),
    )


inputs_of = cache(lambda seed: scene_inputs(scene_of(seed)))


@cache
def expected(seed: int, variant: Variant) -> tuple[float, Tensor]:
    """The reference's value and gradient."""
    scene = scene_of(seed)
    logits = scene.student_logits_SV.clone().requires_grad_()
    loss = dense_loss(scene.student, scene.teacher, scene.units, logits, scene.teacher_logits_TV, variant)
    loss.backward()
    return float(loss.detach()), logits.grad


def measured(seed: int, variant: Variant, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The project's value and gradient."""
    scene = scene_of(seed)
    logits = scene.student_logits_SV.to(dtype, copy=True).requires_grad_()
    loss = distillation_loss(logits, scene.teacher_logits_TV.to(dtype), *inputs_of(seed), **dataclasses.asdict(variant))
    loss.backward()
    return loss.detach(), logits.grad


@every_variant
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_value_and_gradient_equal_the_reference(variant: Variant, dtype: torch.dtype) -> None:
    for seed in SEEDS:
        loss, gradient = measured(seed, variant, dtype)
        expected_loss, expected_gradient = expected(seed, variant)
        rel = 1e-9 if loss.dtype == torch.float64 else 1e-5
        assert loss.shape == ()
        assert float(loss) == pytest.approx(expected_loss, rel=rel)
        scale = float(expected_gradient.abs().max())
        torch.testing.assert_close(gradient.double(), expected_gradient, rtol=rel * 10, atol=rel * scale)


@pytest.mark.parametrize("seed", range(5, 11))
def test_value_equals_the_loops_of_the_reference(seed: int) -> None:
    scene = scene_of(seed)
    for variant in (Variant(), Variant("sum_logprob", "marginal"), Variant("mean_logit", "subtract", divergence="kl")):
        reference = response_loss(
            scene.student,
            scene.teacher,
            scene.student_ids,
            scene.teacher_ids,
            scene.student_logits_SV.numpy(),
            scene.teacher_logits_TV.numpy(),
            variant,
        )
        assert float(measured(seed, variant, torch.float64)[0]) == pytest.approx(reference, rel=1e-5)


def test_the_defaults_are_the_papers() -> None:
    scene = scene_of(0)
    loss = distillation_loss(scene.student_logits_SV, scene.teacher_logits_TV, *inputs_of(0))
    paper = Variant("mean_logprob", "keep", rest=False, divergence="rkl", mass_threshold=None, objective="simct")
    assert float(loss) == pytest.approx(expected(0, paper)[0], rel=1e-5)


@pytest.mark.parametrize("jsd_beta", [0.1, 0.9])
@pytest.mark.parametrize("skew", [0.3])
@pytest.mark.parametrize("divergence", ["jsd", "skl", "srkl"])
def test_mixture_weights_mean_what_the_reference_says(divergence: str, jsd_beta: float, skew: float) -> None:
    variant = Variant(divergence=divergence, jsd_beta=jsd_beta, skew=skew)
    assert float(measured(0, variant, torch.float64)[0]) == pytest.approx(expected(0, variant)[0], rel=1e-5)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_exact_grades_shared_tokens_only(divergence: str) -> None:
    variant = Variant(objective="exact", divergence=divergence)
    for seed in SEEDS:
        loss, gradient = measured(seed, variant, torch.float64)
        expected_loss, expected_gradient = expected(seed, variant)
        assert float(loss) == pytest.approx(expected_loss, rel=1e-5)
        torch.testing.assert_close(gradient.double(), expected_gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("threshold", [1.2, 1.5, 2.0])
@pytest.mark.parametrize("prefix", PREFIXES)
def test_mass_threshold_drops_the_rows_below_it(prefix: str, threshold: float) -> None:
    """Rows between "each candidate's own mass" and "the mass of their union" are kept out: no source settles them."""
    num_dropped = 0
    for seed in range(16):
        scene = scene_of(seed)
        variant = Variant("sum_logprob", prefix, mass_threshold=threshold)
        logits = scene.student_logits_SV.numpy(), scene.teacher_logits_TV.numpy()
        shared = shared_candidates(scene.student, scene.teacher)
        masses = []
        for unit in scene.units:
            teacher = readings(scene.student, scene.teacher, unit, *logits)[1]
            masses.append((teacher_candidate_mass(teacher, unit, shared, variant), np.exp(teacher.unit_logprob())))
        if any(mass - unit_mass < 1 / threshold <= mass for mass, unit_mass in masses):
            continue
        num_dropped += sum(mass < 1 / threshold for mass, _ in masses)
        reference = sum(unit_losses(scene.student, scene.teacher, scene.units, *logits, variant))
        assert float(measured(seed, variant, torch.float64)[0]) == pytest.approx(reference, rel=1e-5, abs=1e-9)
    assert num_dropped > 0 or prefix == "marginal"  # hardly any mass is ever outside its candidates


@every_candidate_set
def test_gradient_reaches_the_student_only(variant: Variant) -> None:
    scene = scene_of(0)
    student, teacher = (
        logits.clone().requires_grad_() for logits in (scene.student_logits_SV, scene.teacher_logits_TV)
    )
    distillation_loss(student, teacher, *inputs_of(0), **dataclasses.asdict(variant)).backward()
    assert teacher.grad is None
    assert student.grad is not None
    assert student.grad.abs().sum() > 0


@every_candidate_set
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_every_precision_is_finite_and_near(variant: Variant, dtype: torch.dtype) -> None:
    loss, gradient = measured(0, variant, dtype)
    assert float(loss) == pytest.approx(expected(0, variant)[0], rel=0.1)
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("prefix", PREFIXES[1:])
@pytest.mark.parametrize("rest", [True, False])
def test_small_differences_of_masses_keep_their_digits_in_float32(prefix: str, rest: bool) -> None:
    """A sharp model leaves 1e-8 or less to the rest, or to a bucket without its unit, which a subtraction would round
    away.
    """
    variant = Variant("sum_logprob", prefix, rest=rest)
    for seed in (118, 460, 708, 751):
        scene = random_scene(seed, scale=6.0)
        logits = scene.student_logits_SV.float(), scene.teacher_logits_TV.float()
        loss = distillation_loss(*logits, *scene_inputs(scene), **dataclasses.asdict(variant))
        reference = dense_loss(
            scene.student, scene.teacher, scene.units, scene.student_logits_SV, scene.teacher_logits_TV, variant
        )
        assert float(loss) == pytest.approx(float(reference), rel=1e-4)


@every_variant
@pytest.mark.parametrize("peak", [1e2, 1e4])
def test_extreme_logits_stay_finite(variant: Variant, peak: float) -> None:
    """Both models are certain, of other tokens or of the same: no overflow, no -inf against -inf."""
    scene = scene_of(0)
    student, teacher = scene.student_logits_SV.float(), scene.teacher_logits_TV.float()
    rows = torch.arange(len(student)), torch.arange(len(teacher))
    peaks = [
        (rows[0], torch.tensor(scene.student_ids), rows[1], torch.tensor(scene.teacher_ids)),
        (rows[0], torch.ones_like(rows[0]), rows[1], torch.full_like(rows[1], 2)),
    ]
    for student_rows, student_ids, teacher_rows, teacher_ids in peaks:
        sharp_student, sharp_teacher = student.clone(), teacher.clone()
        sharp_student[student_rows, student_ids] = peak
        sharp_teacher[teacher_rows, teacher_ids] = peak
        sharp_student[:, -1] = -peak
        sharp_student.requires_grad_()
        loss = distillation_loss(sharp_student, sharp_teacher, *inputs_of(0), **dataclasses.asdict(variant))
        loss.backward()
        assert torch.isfinite(loss)
        assert torch.isfinite(sharp_student.grad).all()


@every_candidate_set
def test_never_sampled_ids_may_be_minus_infinity(variant: Variant) -> None:
    """A head that masks its padded rows with -inf changes nothing but their probability."""
    scene = scene_of(0)
    student = scene.student_logits_SV.clone()
    student[:, len(scene.student.tokens) :] = -torch.inf
    masked = dataclasses.replace(scene, student_logits_SV=student)
    logits = student.clone().requires_grad_()
    loss = distillation_loss(logits, scene.teacher_logits_TV, *inputs_of(0), **dataclasses.asdict(variant))
    loss.backward()
    finite = dataclasses.replace(masked, student_logits_SV=student.clamp_min(-1e4))
    reference = dense_loss(
        scene.student, scene.teacher, scene.units, finite.student_logits_SV, scene.teacher_logits_TV, variant
    )
    assert float(loss.detach()) == pytest.approx(float(reference), rel=1e-5)
    assert torch.isfinite(logits.grad).all()


def same_tokenizer_scene() -> tuple[Side, list[int], Tensor, Tensor]:
    side = Side((None, b"a", b"b", b"ab", b"a", b"0", b"20", b"\xf0\x9f", None, None), (8, 9), fallback_ids=(4,))
    ids = [1, 3, 2, 6, 5, 7, 1, 9]
    generator = torch.Generator().manual_seed(0)
    student, teacher = (
        torch.randn(len(ids), len(side.tokens), generator=generator, dtype=torch.float64) * 2 for _ in range(2)
    )
    return side, ids, student, teacher


@pytest.mark.parametrize("objective", ["simct", "exact"])
@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("prefix", PREFIXES)
def test_same_tokenizer_is_plain_reverse_kl(objective: str, score: str, prefix: str) -> None:
    """Over every id, control tokens and duplicates too, and each stop id for itself."""
    side, ids, student, teacher = same_tokenizer_scene()
    student.requires_grad_()
    loss = distillation_loss(
        student,
        teacher,
        alignment_of(side, side, ids, ids),
        shared_vocab_of(side, side),
        score=score,
        prefix=prefix,
        objective=objective,
    )
    (gradient,) = torch.autograd.grad(loss, student)
    plain = torch.nn.functional.kl_div(
        teacher.log_softmax(-1), student.log_softmax(-1), reduction="sum", log_target=True
    )
    (plain_gradient,) = torch.autograd.grad(plain, student)
    assert float(loss.detach()) == pytest.approx(float(plain.detach()), rel=1e-5)
    torch.testing.assert_close(gradient, plain_gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_same_tokenizer_is_every_divergence_over_the_full_vocabulary(divergence: str) -> None:
    """`exact` then is vanilla distillation: all ids, every token, value and gradient."""
    side, ids, student, teacher = same_tokenizer_scene()
    student.requires_grad_()
    loss = distillation_loss(
        student,
        teacher,
        alignment_of(side, side, ids, ids),
        shared_vocab_of(side, side),
        objective="exact",
        divergence=divergence,
    )
    (gradient,) = torch.autograd.grad(loss, student)
    variant = Variant(divergence=divergence)
    rows = zip(student.softmax(-1), teacher.softmax(-1), strict=True)
    plain = torch.stack([dense_divergence(variant, q, p) for q, p in rows]).sum()
    (plain_gradient,) = torch.autograd.grad(plain, student)
    assert float(loss.detach()) == pytest.approx(float(plain.detach()), rel=1e-9)
    torch.testing.assert_close(gradient, plain_gradient, rtol=1e-8, atol=1e-10)


def test_units_without_supervision_add_nothing() -> None:
    scene, (alignment, shared_vocab) = scene_of(0), inputs_of(0)
    supervised_U = np.arange(alignment.num_units) % 2 == 0
    losses = [
        distillation_loss(
            scene.student_logits_SV,
            scene.teacher_logits_TV,
            dataclasses.replace(alignment, supervised_U=mask),
            shared_vocab,
        )
        for mask in (supervised_U, ~supervised_U, np.ones_like(supervised_U))
    ]
    assert float(losses[0]) > 0
    assert float(losses[0] + losses[1]) == pytest.approx(float(losses[2]), rel=1e-6)


@pytest.mark.parametrize("padding", [0.0, -torch.inf])
def test_nothing_aligned_is_a_zero_that_runs_backward(padding: float) -> None:
    """A head's padded rows may hold -inf, which no product with zero may meet."""
    scene, (alignment, shared_vocab) = scene_of(0), inputs_of(0)
    nothing = dataclasses.replace(
        alignment,
        units_U6=np.zeros((0, 6), dtype=np.int64),
        supervised_U=np.zeros(0, dtype=bool),
        has_stop=False,
    )
    logits = scene.student_logits_SV.clone()
    logits[:, len(scene.student.tokens) :] = padding
    logits.requires_grad_()
    loss = distillation_loss(logits, scene.teacher_logits_TV, nothing, shared_vocab)
    loss.backward()
    assert float(loss.detach()) == 0
    assert logits.grad is not None
    assert not logits.grad.any()
