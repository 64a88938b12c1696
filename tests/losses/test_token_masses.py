"""The sums by category and what is made of them: any divergence, single precision, statistics, and no waiting."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest
import torch
from torch import Tensor

from simct_pl import TokenConditionalLoss
from simct_pl.losses.base import UnitChunk
from simct_pl.losses.divergences import DivergenceName, named_divergence
from simct_pl.losses.inputs.unit_rows import UnitRows
from simct_pl.losses.inputs.vocab_tables import PairTables
from simct_pl.losses.token_conditional import LEAST
from simct_pl.losses.token_paths.masses import Exponentials, SideLabels, StudentMasses, TeacherMasses
from simct_pl.training.unit_stats import unit_stats
from tests.losses.test_token_conditional import chunk_of, objective_of, rows_of
from tests.reference.bridge import alignment_of, shared_vocab_of
from tests.reference.language import LANGUAGES, Language

every_language = pytest.mark.parametrize("name", LANGUAGES)
PADDING = 3  # rows of the student's head beyond its tokenizer's ids


def responses(language: Language) -> UnitRows:
    """Some texts, one after another; the last one is cut short."""
    texts = [language.written[k] for k in (0, len(language.written) // 2, -1)]
    ids = [(student_ids, teacher_ids) for _, student_ids, teacher_ids in texts]
    ids.append((ids[0][0][:-1], ids[0][1][:-1]))
    return rows_of(
        language.student, language.teacher, [alignment_of(language.student, language.teacher, *one) for one in ids]
    )


def logits_of(language: Language, rows: UnitRows, scale: float = 2.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    num_rows = int(rows.student_rows_N.max()) + 1, int(rows.read_rows_X.max()) + 1
    widths = len(language.student.tokens) + PADDING, len(language.teacher.tokens)
    student_SV, teacher_TV = (
        scale * torch.randn(num, width, generator=generator, dtype=torch.float64)
        for num, width in zip(num_rows, widths, strict=True)
    )
    return student_SV, teacher_TV


def with_links_of(language: Language, objective: TokenConditionalLoss) -> TokenConditionalLoss:
    builder = objective_of(language.student, language.teacher).path_builder
    assert builder is not None
    objective.use(builder.links)
    return objective


@every_language
@pytest.mark.parametrize("divergence", get_args(DivergenceName))
def test_every_divergence_is_that_of_the_masses_and_its_gradient_that_of_differences(
    name: str, divergence: DivergenceName
) -> None:
    language = LANGUAGES[name]
    floor = 1e-4
    objective = with_links_of(language, TokenConditionalLoss(divergence, floor=floor))
    rows = responses(language)
    student_SV, teacher_TV = logits_of(language, rows)

    def loss_of(logits_SV: Tensor) -> Tensor:
        return objective(chunk_of(language.student, language.teacher, rows, logits_SV, teacher_TV)).loss_U

    chunk = chunk_of(language.student, language.teacher, rows, student_SV, teacher_TV)
    logq_NC, logt_NC = log_probabilities(chunk, objective, floor)
    loss_N = named_divergence(divergence)(logq_NC, logt_NC)
    loss_U = torch.zeros(rows.num_units, dtype=torch.float64).index_add(0, rows.student_unit_N, loss_N)
    torch.testing.assert_close(loss_of(student_SV), loss_U, rtol=1e-9, atol=1e-12)
    if divergence != "akl":  # its weights have no gradient, so that differences say something else
        assert torch.autograd.gradcheck(loss_of, student_SV.clone().requires_grad_(), atol=1e-6, fast_mode=True)


def log_probabilities(chunk: UnitChunk, objective: TokenConditionalLoss, floor: float) -> tuple[Tensor, Tensor]:
    paths, logits_XK = chunk.paths, chunk.path_logits_XK
    assert paths is not None
    assert logits_XK is not None
    assert objective.path_builder is not None
    labels = SideLabels.of(objective.path_builder.links)
    exp_NK = chunk.student_logits_NK.softmax(-1)
    mass_NC = StudentMasses.of(exp_NK, paths, labels[0].label_K, labels[0].keep_MK).mass_NC
    path_NC = TeacherMasses.of(logits_XK, paths, labels[1].label_K, labels[1].keep_MK).mass_NC
    has_NC = torch.arange(paths.num_labels) < (paths.num_classes + paths.num_own_N)[:, None]
    path_NC = path_NC + floor * path_NC.sum(-1, keepdim=True)
    q_NC, t_NC = (torch.where(has_NC, one, 0.0) for one in (mass_NC, path_NC))
    logq_NC = (q_NC / q_NC.sum(-1, keepdim=True) + LEAST).log()
    logt_NC = (t_NC / t_NC.sum(-1, keepdim=True)).log()
    return logq_NC.masked_fill(~has_NC, -torch.inf), logt_NC.masked_fill(~has_NC, -torch.inf)


@every_language
@pytest.mark.parametrize("divergence", ["rkl", "kl", "jsd", "srkl", "tvd"])
@pytest.mark.parametrize("scale", [2.0, 12.0])
def test_single_precision_is_near_double_where_probabilities_vanish_too(
    name: str, divergence: DivergenceName, scale: float
) -> None:
    language = LANGUAGES[name]
    objective = with_links_of(language, TokenConditionalLoss(divergence, floor=1e-6))
    rows = responses(language)
    found = []
    for dtype in (torch.float64, torch.float32):
        student_SV, teacher_TV = (one.to(dtype) for one in logits_of(language, rows, scale))
        leaf_SV = student_SV.requires_grad_()
        loss_U = objective(chunk_of(language.student, language.teacher, rows, leaf_SV, teacher_TV)).loss_U
        (gradient_SV,) = torch.autograd.grad(loss_U.sum(), leaf_SV)
        found.append((loss_U.detach().double(), gradient_SV.double()))
    torch.testing.assert_close(found[1], found[0], rtol=2e-4, atol=2e-4)


@every_language
def test_what_is_moved_leaves_nothing_behind(name: str) -> None:
    """A class whose ids are all moved or dropped has a mass of exactly 0, on both sides, in single precision."""
    language = LANGUAGES[name]
    rows = responses(language)
    student_SV, teacher_TV = (one.float() for one in logits_of(language, rows))
    chunk = chunk_of(language.student, language.teacher, rows, student_SV, teacher_TV)
    paths, logits_XK = chunk.paths, chunk.path_logits_XK
    assert paths is not None
    assert logits_XK is not None
    builder = objective_of(language.student, language.teacher).path_builder
    assert builder is not None
    ours, _ = SideLabels.of(builder.links)
    mass_NC = StudentMasses.of(
        Exponentials.of(chunk.student_logits_NK).exp_NK, paths, ours.label_K, ours.keep_MK
    ).mass_NC
    left_NK = torch.ones(len(mass_NC), len(ours.label_K), dtype=torch.bool)
    left_NK[paths.moved_token_E, paths.moved_id_E] = False
    left_NK[paths.kinds_token_D] &= ours.keep_MK[paths.kinds_mask_D]
    left_NK[paths.based_token_B] = False
    has_NC = torch.zeros(mass_NC.shape, dtype=torch.bool)
    has_NC |= torch.zeros_like(mass_NC).index_add_(1, ours.label_K, left_NK.float()) > 0
    takes = paths.moved_label_E >= 0
    has_NC[paths.moved_token_E[takes], paths.moved_label_E[takes]] = True
    flat = has_NC.view(-1)
    flat[paths.base_place_B[paths.base_is_label_B]] = True
    flat[paths.merged_to_J[paths.merged_is_label_J]] = True
    flat[paths.merged_from_J] = False
    assert (~has_NC).any()
    assert not mass_NC[~has_NC].any()


@every_language
def test_steps_that_read_one_row_are_summed_apart(name: str) -> None:
    """No pair that is known needs it; what it gives is what the usual way gives."""
    language = LANGUAGES[name]
    rows = responses(language)
    chunk = chunk_of(language.student, language.teacher, rows, *logits_of(language, rows))
    paths, logits_XK = chunk.paths, chunk.path_logits_XK
    assert paths is not None
    assert logits_XK is not None
    assert paths.whole_rows_differ
    builder = objective_of(language.student, language.teacher).path_builder
    assert builder is not None
    side = SideLabels.of(builder.links)[1]
    usual, apart = (
        TeacherMasses.of(logits_XK, one, side.label_K, side.keep_MK).mass_NC
        for one in (paths, replace(paths, whole_rows_differ=False))
    )
    torch.testing.assert_close(apart, usual)


@every_language
def test_statistics_from_what_the_loss_knows_are_those_from_log_probabilities(name: str) -> None:
    """A student that rules an id out has a finite entropy."""
    language = LANGUAGES[name]
    rows = responses(language)
    student_SV, teacher_TV = logits_of(language, rows)
    student_SV[:, -1] = -torch.inf
    chunk = chunk_of(language.student, language.teacher, rows, student_SV, teacher_TV)
    losses = objective_of(language.student, language.teacher)(chunk)
    assert losses.row_stats is not None
    known, plain = unit_stats(chunk, losses), unit_stats(chunk, replace(losses, row_stats=None))
    for field, value in vars(known).items():
        torch.testing.assert_close(value, vars(plain)[field], msg=field)
    assert known.student_entropy_U.isfinite().all()
    assert (known.student_stop_U > 0).any()


@pytest.mark.parametrize("divergence", get_args(DivergenceName))
def test_the_device_is_never_waited_for(divergence: DivergenceName) -> None:
    """A meta device has no values: whatever asks for one raises there, from the upload to the gradients."""
    language = LANGUAGES["words"]
    rows = responses(language)
    objective = with_links_of(language, TokenConditionalLoss(divergence))
    meta = torch.device("meta")
    leaf_NK, read_XK = (
        torch.zeros(len(ids), width, device=meta)
        for ids, width in (
            (rows.student_ids_N, len(language.student.tokens)),
            (rows.read_rows_X, len(language.teacher.tokens)),
        )
    )
    tables = PairTables.build(shared_vocab_of(language.student, language.teacher), meta)
    leaf_NK.requires_grad_()
    chunk = UnitChunk.read(leaf_NK, read_XK, rows.read_rows_X, rows, tables)
    losses = objective(chunk)
    (gradient_NK,) = torch.autograd.grad(losses.loss_U.sum(), leaf_NK)
    assert gradient_NK.shape == leaf_NK.shape
    assert unit_stats(chunk, losses).loss_U.device == meta
