"""What holds for every objective: the reference's value and gradient, finite numbers, no gradient for the teacher."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor

from simct_pl import (
    ALMLoss,
    BPMLoss,
    CrossEntropyLoss,
    DPCALoss,
    GOLDLoss,
    MixtureLoss,
    SharedVocabLoss,
    SimCTLoss,
    TokenConditionalLoss,
    ULDLoss,
    XTokenHKL,
    XTokenPKL,
)
from simct_pl.errors import RecipeError
from simct_pl.losses.alm import log1mexp
from simct_pl.losses.base import Objective, UnitChunk, UnitLosses
from simct_pl.losses.inputs.unit_rows import UnitRows, build_unit_rows
from simct_pl.losses.inputs.vocab_tables import PairTables
from simct_pl.losses.mixture import Weighted
from simct_pl.losses.token_paths.vocab_links import VocabLinks
from simct_pl.tokenization.projection import TokenProjection
from tests.reference import objectives as reference
from tests.reference.bpm import bpm
from tests.reference.bridge import reader_of, scene_inputs
from tests.reference.objectives import UnitReference, response_loss
from tests.reference.scenes import Scene, random_scene

SEEDS = range(6)
BASELINES: dict[str, tuple[Objective, UnitReference]] = {
    "uld": (ULDLoss(), reference.uld(1.5, None)),
    "uld-top-5": (ULDLoss(weight=1.0, top_k=5), reference.uld(1.0, 5)),
    "uld-top-all": (ULDLoss(top_k=10_000), reference.uld(1.5, None)),
    "alm-kl-100": (ALMLoss("kl", 100.0), reference.alm("kl", 100.0)),
    "alm-kl-1": (ALMLoss("kl", 1.0), reference.alm("kl", 1.0)),
    "alm-kl-limit": (ALMLoss("kl", None), reference.alm("kl", None)),
    "alm-tvd-10": (ALMLoss("tvd", 10.0), reference.alm("tvd", 10.0)),
    "alm-tvd-limit": (ALMLoss("tvd", None), reference.alm("tvd", None)),
    "gold-first": (GOLDLoss("first", 1.0), reference.gold("first", 1.0, None)),
    "gold-last-0": (GOLDLoss("last", 0.0, 0.3), reference.gold("last", 0.0, 0.3)),
    "gold-last-half": (GOLDLoss("last", 0.5, 1.0), reference.gold("last", 0.5, 1.0)),
    "dpca": (DPCALoss(), reference.dpca(None)),
    "dpca-clipped": (DPCALoss(clip=0.5), reference.dpca(0.5)),
    "xtoken-pkl": (XTokenPKL(), reference.xtoken_pkl(1.0)),
    "xtoken-hkl": (XTokenHKL(), reference.gold("first", 0.0, None, reference.best_of_projection(0.6, 0.5))),
    "xtoken-hkl-most": (
        XTokenHKL(0.3, 0.9, 0.5, 0.4),
        reference.gold("first", 0.5, 0.4, reference.best_of_projection(0.3, 0.9)),
    ),
    "xtoken-pkl-decay": (XTokenPKL(decay=0.5), reference.xtoken_pkl(0.5)),
    "bpm": (BPMLoss(), bpm(0.5, skip_blank=True)),
    "bpm-every-row": (BPMLoss(jsd_beta=0.3, skip_blank=False), bpm(0.3, skip_blank=False)),
    "cross-entropy": (CrossEntropyLoss(), reference.cross_entropy()),
    "mixture": (
        MixtureLoss([Weighted(ULDLoss(), 0.5), Weighted(ALMLoss("kl", None), 2.0)]),
        reference.mixture((0.5, reference.uld(1.5, None)), (2.0, reference.alm("kl", None))),
    ),
}
OURS: dict[str, Objective] = {
    "simct-paper": SimCTLoss(),
    "simct-released": SimCTLoss("mean_logit"),
    "simct-mask": SimCTLoss("sum_logprob", "mask"),
    "simct-marginal-rest": SimCTLoss("sum_logprob", "marginal", rest=True),
    "exact": SharedVocabLoss(),
    "token-conditional": TokenConditionalLoss(),
    "token-conditional-kl": TokenConditionalLoss("kl"),
    "mixture-with-paths": MixtureLoss([Weighted(ALMLoss("kl", None), 0.1), Weighted(TokenConditionalLoss("jsd"))]),
}
ALL = {**{name: objective for name, (objective, _) in BASELINES.items()}, **OURS}

scene_of = cache(random_scene)


def prepared(objective: Objective, scene: Scene) -> Objective:
    """With what it makes of the scene's vocabularies, where it needs it; they have no tokenizer of their own."""
    if isinstance(objective, BPMLoss):
        objective.use(scene_inputs(scene)[1])
    elif isinstance(objective, MixtureLoss):
        for part in objective.parts:
            prepared(part.objective, scene)
    elif isinstance(objective, TokenConditionalLoss):
        objective.use(VocabLinks.build(reader_of(scene.student), reader_of(scene.teacher), cached=False))
    elif isinstance(objective, XTokenPKL | XTokenHKL):
        _, shared_vocab = scene_inputs(scene)
        objective.use(TokenProjection.build(shared_vocab, reader_of(scene.teacher).spell, objective.decay))
    return objective


def chunk_of(scene: Scene, student_SV: Tensor, teacher_TV: Tensor, objective: Objective | None = None) -> UnitChunk:
    alignment, shared_vocab = scene_inputs(scene)
    builder = objective.path_builder if objective is not None else None
    rows = build_unit_rows([alignment], shared_vocab, path_builder=builder)
    return chunk_of_rows(rows, student_SV, teacher_TV, PairTables.build(shared_vocab))


def chunk_of_rows(rows: UnitRows, student_SV: Tensor, teacher_TV: Tensor, tables: PairTables) -> UnitChunk:
    read_X = rows.read_rows_X
    return UnitChunk.read(student_SV[rows.student_rows_N], teacher_TV[read_X], read_X, rows, tables)


def measured(objective: Objective, seed: int, dtype: torch.dtype, scale: float = 1.0) -> tuple[UnitLosses, Tensor]:
    """Losses of a scene, and the gradient of their sum."""
    return graded(objective, scene_of(seed), dtype, scale)


def graded(objective: Objective, scene: Scene, dtype: torch.dtype, scale: float = 1.0) -> tuple[UnitLosses, Tensor]:
    student_SV = (scene.student_logits_SV * scale).to(dtype).requires_grad_()
    objective = prepared(objective, scene)
    losses = objective(chunk_of(scene, student_SV, (scene.teacher_logits_TV * scale).to(dtype), objective))
    losses.loss_U.sum().backward()
    assert student_SV.grad is not None
    return losses, student_SV.grad


@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_value_and_gradient_equal_the_reference(name: str, dtype: torch.dtype) -> None:
    objective, unit_reference = BASELINES[name]
    rel = 1e-8 if dtype == torch.float64 else 1e-5
    graded = 0
    for seed in SEEDS:
        scene = scene_of(seed)
        student_SV = scene.student_logits_SV.to(dtype).double().clone().requires_grad_()
        teacher_TV = scene.teacher_logits_TV.to(dtype).double()
        expected = response_loss(unit_reference, scene, student_SV, teacher_TV)
        losses, gradient = measured(objective, seed, dtype)
        graded += int(losses.supervised_U.sum())
        assert float(losses.loss_U.detach().sum()) == pytest.approx(float(expected), rel=rel, abs=rel)
        expected.backward()
        assert student_SV.grad is not None
        scale = float(student_SV.grad.abs().max())
        torch.testing.assert_close(gradient.double(), student_SV.grad, rtol=10 * rel, atol=rel * scale)
    assert graded > 20


@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_logits_of_half_precision_are_widened_before_anything_else(name: str, dtype: torch.dtype) -> None:
    """The value is that of the same rounded logits in double precision."""
    objective, unit_reference = BASELINES[name]
    for seed in SEEDS:
        scene = scene_of(seed)
        rounded = scene.student_logits_SV.to(dtype).double(), scene.teacher_logits_TV.to(dtype).double()
        expected = response_loss(unit_reference, scene, *rounded)
        found = measured(objective, seed, dtype)[0].loss_U.detach().double().sum()
        assert float(found) == pytest.approx(float(expected), rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("name", ALL)
def test_a_unit_has_the_same_loss_whatever_it_is_graded_with(name: str) -> None:
    """And the same gradient: those of the units, each alone, add up to that of the chunk."""
    for seed in SEEDS:
        scene = scene_of(seed)
        objective = prepared(ALL[name], scene)
        whole_SV, alone_SV = (scene.student_logits_SV.clone().requires_grad_() for _ in range(2))
        alignment, shared_vocab = scene_inputs(scene)
        whole_rows = build_unit_rows([alignment], shared_vocab, path_builder=objective.path_builder)
        whole = chunk_of_rows(whole_rows, whole_SV, scene.teacher_logits_TV, PairTables.build(shared_vocab))
        together = objective(whole)
        together.loss_U.sum().backward()
        for unit in range(whole.rows.num_units):
            rows = whole_rows.slice(unit, unit + 1)
            alone = objective(chunk_of_rows(rows, alone_SV, scene.teacher_logits_TV, whole.tables))
            alone.loss_U.sum().backward()
            assert alone.anchor_U is None  # no objective's own
            by_unit = {field: value for field, value in vars(alone).items() if field.endswith("_U")}
            del by_unit["anchor_U"]
            for field, value in by_unit.items():
                torch.testing.assert_close(value, vars(together)[field][unit : unit + 1], msg=f"{field} of unit {unit}")
        torch.testing.assert_close(alone_SV.grad, whole_SV.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ALL)
def test_what_is_not_supervised_has_no_loss_and_nothing_reaches_the_teacher(name: str) -> None:
    scene = scene_of(0)
    student_SV = scene.student_logits_SV.clone().requires_grad_()
    teacher_TV = scene.teacher_logits_TV.clone().requires_grad_()
    objective = prepared(ALL[name], scene)
    losses = objective(chunk_of(scene, student_SV, teacher_TV, objective))
    assert not losses.loss_U[~losses.supervised_U].any()
    losses.loss_U.sum().backward()
    assert teacher_TV.grad is None
    assert student_SV.grad is not None
    assert student_SV.grad.any()


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("scale", [1.0, 300.0], ids=["ordinary", "certain"])
def test_losses_and_gradients_are_finite(name: str, dtype: torch.dtype, scale: float) -> None:
    """At 300 times the logits one token has all the probability, and the sampled one often none."""
    losses, gradient = measured(ALL[name], 1, dtype, scale)
    assert losses.loss_U.dtype == torch.float32
    assert torch.isfinite(losses.loss_U).all()
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("name", ALL)
def test_ids_that_a_head_rules_out_change_nothing(name: str) -> None:
    """-inf in the student's padded rows: as much as a logit far below all others, and no NaN."""
    scene = scene_of(1)
    ruled_out, unlikely = scene.student_logits_SV.clone(), scene.student_logits_SV.clone()
    ruled_out[:, len(scene.student.tokens) :] = -torch.inf
    unlikely[:, len(scene.student.tokens) :] = -1e4
    losses, gradient = graded(ALL[name], replace(scene, student_logits_SV=ruled_out), torch.float32)
    expected, expected_gradient = graded(ALL[name], replace(scene, student_logits_SV=unlikely), torch.float32)
    torch.testing.assert_close(losses.loss_U, expected.loss_U)
    torch.testing.assert_close(gradient, expected_gradient)
    assert torch.isfinite(gradient).all()


AGREE = ("uld", "uld-top-5", "alm-kl-100", "alm-kl-limit", "alm-tvd-10", "gold-first", "dpca", "xtoken-pkl", "bpm")


@pytest.mark.parametrize("name", AGREE)
def test_nothing_is_to_be_learned_from_a_teacher_that_agrees(name: str) -> None:
    """Same vocabulary, same tokens, same logits."""
    scene = scene_of(2)
    twin = Scene(
        scene.student,
        scene.student,
        scene.student_ids,
        scene.student_ids,
        scene.student_logits_SV,
        scene.student_logits_SV.clone(),
    )
    student_SV = twin.student_logits_SV.clone().requires_grad_()
    losses = prepared(BASELINES[name][0], twin)(chunk_of(twin, student_SV, twin.teacher_logits_TV))
    assert float(losses.loss_U.detach().abs().sum()) < 1e-12
    losses.loss_U.sum().backward()
    assert student_SV.grad is not None
    if name not in ("uld", "uld-top-5", "alm-tvd-10", "gold-first"):  # |x| has no gradient to speak of at 0
        assert float(student_SV.grad.abs().max()) < 1e-9


def test_the_probability_of_another_unit_keeps_its_digits_at_both_ends() -> None:
    """log(1 - p) and its derivative -p / (1 - p) in float32, from almost certain to almost impossible."""
    logps = [-1e-30, -1e-7, -1e-4, -0.5, -math.log(2), -0.7, -5.0, -30.0, -80.0]
    logp = torch.tensor(logps, dtype=torch.float32, requires_grad=True)
    found = log1mexp(logp)
    (slope,) = torch.autograd.grad(found.sum(), logp)
    for i, exact in enumerate(logp.detach().double().tolist()):
        expected = math.log(-math.expm1(exact)) if exact > -1 else math.log1p(-math.exp(exact))
        assert float(found[i].detach()) == pytest.approx(expected, rel=1e-6, abs=1e-40)
        assert float(slope[i]) == pytest.approx(math.exp(exact) / math.expm1(exact), rel=1e-6)


def test_the_closed_form_is_the_limit_of_high_temperatures() -> None:
    for divergence in ("kl", "tvd"):
        limit = measured(ALMLoss(divergence, None), 1, torch.float64)[0].loss_U  # type: ignore[arg-type]
        hot = measured(ALMLoss(divergence, 1e6), 1, torch.float64)[0].loss_U * 1e6  # type: ignore[arg-type]
        torch.testing.assert_close(hot, limit, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("top_k", [1, 2, 4, 8])
def test_the_first_top_k_fall_short_by_at_most_twice_the_smaller_rest(top_k: int) -> None:
    whole, cut = (measured(ULDLoss(1.0, k), 3, torch.float64)[0].loss_U.detach() for k in (None, top_k))
    scene = scene_of(3)
    chunk = chunk_of(scene, scene.student_logits_SV, scene.teacher_logits_TV)
    rests = [1 - side.first_logp_UK.exp().topk(top_k).values.sum(-1) for side in (chunk.student, chunk.teacher)]
    assert (cut <= whole + 1e-12).all()
    assert (cut < whole).any()
    assert (whole - cut <= 2 * torch.minimum(*rests) + 1e-12).all()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ULDLoss(top_k=0), "top_k is 0"),
        (lambda: GOLDLoss("middle"), "merge is 'middle'"),  # type: ignore[arg-type]
        (lambda: GOLDLoss(beta=1.5), "beta is 1.5"),
        (lambda: GOLDLoss(matched_weight=-1.0), "matched_weight is -1"),
        (lambda: ALMLoss("rkl"), "divergence is 'rkl'"),  # type: ignore[arg-type]
        (lambda: ALMLoss(tau=0.0), "tau is 0"),
        (lambda: DPCALoss(clip=-1.0), "clip is -1"),
        (lambda: XTokenHKL(threshold=1.5), "threshold is 1.5"),
        (lambda: MixtureLoss([]), "no parts"),
        (lambda: Weighted(ULDLoss(), 0.0), "weight of the mixture is 0"),
    ],
)
def test_what_has_no_meaning_is_refused(build, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(RecipeError, match=message):
        build()


def test_a_mixture_describes_its_parts_and_asks_for_what_they_need() -> None:
    mixture = MixtureLoss([Weighted(ULDLoss(), 0.5), Weighted(SimCTLoss("sum_logprob", "mask"))])
    assert mixture.uses_prefixes
    parts = mixture.describe()["parts"]
    assert isinstance(parts, list)
    assert [(part["objective"], part["weight"]) for part in parts] == [("ULDLoss", 0.5), ("SimCTLoss", 1.0)]
