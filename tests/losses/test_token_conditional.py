"""One question a student token: the law of agreement, the reference's value and gradient, and what is never read."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Literal, get_args

import pytest
import torch
from torch import Tensor

from simct_pl import SharedVocabLoss, TokenConditionalLoss
from simct_pl.errors import RecipeError
from simct_pl.losses.base import UnitChunk
from simct_pl.losses.inputs.unit_rows import UnitRows, build_unit_rows
from simct_pl.losses.inputs.vocab_tables import PairTables
from simct_pl.losses.token_paths import asking, shift
from simct_pl.losses.token_paths.masses import Exponentials, SideLabels, StudentMasses, TeacherMasses
from simct_pl.losses.token_paths.vocab_links import VocabLinks
from simct_pl.types import UnitAlignment
from tests.reference.bridge import alignment_of, reader_of, shared_vocab_of
from tests.reference.language import LANGUAGES, Language, vocabulary
from tests.reference.token_paths import response_loss
from tests.reference.vocabulary import Side, greedy_ids

SMOOTHING = 1e-12
Form = Literal["listed", "vectors", "coarse"]
every_language = pytest.mark.parametrize("name", LANGUAGES)


@cache
def objective_of(student: Side, teacher: Side) -> TokenConditionalLoss:
    objective = TokenConditionalLoss()
    objective.use(VocabLinks.build(reader_of(student), reader_of(teacher), cached=False))
    return objective


@pytest.fixture(params=get_args(Form))
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Form]:
    """How what goes on from part of a teacher token is told apart: listed where it is little, else as vectors of both
    vocabularies; or coarsely, where it is too much even for these.
    """
    form: Form = request.param
    if form != "listed":
        monkeypatch.setattr(shift, "MANY", 0)
    if form == "coarse":
        monkeypatch.setattr(asking, "MANY", 0)
    objective_of.cache_clear()
    yield form
    objective_of.cache_clear()


def rows_of(student: Side, teacher: Side, alignments: list[UnitAlignment]) -> UnitRows:
    builder = objective_of(student, teacher).path_builder
    return build_unit_rows(alignments, shared_vocab_of(student, teacher), path_builder=builder)


def chunk_of(student: Side, teacher: Side, rows: UnitRows, student_SV: Tensor, teacher_TV: Tensor) -> UnitChunk:
    tables = PairTables.build(shared_vocab_of(student, teacher))
    read_X = rows.read_rows_X
    return UnitChunk.read(student_SV[rows.student_rows_N], teacher_TV[read_X], read_X, rows, tables)


def agreeing(language: Language) -> list[tuple[float, list[int], list[int], Tensor, Tensor]]:
    """(probability, ids of both, logits of both) of each text, by two models that agree about every text."""
    student, teacher = (language.rows(place, SMOOTHING) for place in (1, 2))
    return [
        (
            p,
            student_ids,
            teacher_ids,
            torch.stack([student[tuple(student_ids[:i])] for i in range(len(student_ids))]),
            torch.stack([teacher[tuple(teacher_ids[:i])] for i in range(len(teacher_ids))]),
        )
        for p, student_ids, teacher_ids in language.written
    ]


@every_language
def test_models_that_agree_about_every_text_have_nothing_to_learn(name: str, form: Form) -> None:
    """The loss is 0, and so is the expected gradient at every prefix."""
    language = LANGUAGES[name]
    sides = language.student, language.teacher
    expected: dict[tuple[int, ...], Tensor] = {}
    total = 0.0
    for p, student_ids, teacher_ids, student_SV, teacher_TV in agreeing(language):
        rows = rows_of(*sides, [alignment_of(*sides, student_ids, teacher_ids)])
        leaf_SV = student_SV.clone().requires_grad_()
        loss = objective_of(*sides)(chunk_of(*sides, rows, leaf_SV, teacher_TV)).loss_U.sum()
        (gradient_SV,) = torch.autograd.grad(loss, leaf_SV)
        total += p * float(loss.detach())
        for i, gradient in enumerate(gradient_SV):
            prefix = tuple(student_ids[:i])
            expected[prefix] = expected.get(prefix, torch.zeros(())) + p * gradient
    assert total < 1e-6
    assert max(float(gradient.abs().max()) for gradient in expected.values()) < 1e-6


@every_language
def test_what_both_sides_say_is_the_texts_own_conditional_probability(name: str, form: Form) -> None:
    """Given the student's cuts up to the position and the teacher's up to T0, by counting texts."""
    language = LANGUAGES[name]
    sides = language.student, language.teacher
    links = objective_of(*sides).path_builder.links  # type: ignore[union-attr]
    labels = SideLabels.of(links)
    finer = 0
    for _, student_ids, teacher_ids, student_SV, teacher_TV in agreeing(language):
        rows = rows_of(*sides, [alignment_of(*sides, student_ids, teacher_ids)])
        chunk = chunk_of(*sides, rows, student_SV, teacher_TV)
        paths = chunk.paths
        assert paths is not None
        assert chunk.path_logits_XK is not None
        masses = (
            StudentMasses.of(
                Exponentials.of(chunk.student_logits_NK).exp_NK, paths, labels[0].label_K, labels[0].keep_MK
            ).mass_NC,
            TeacherMasses.of(chunk.path_logits_XK, paths, labels[1].label_K, labels[1].keep_MK).mass_NC,
        )
        for i in range(len(student_ids)):
            true = true_conditional(language, student_ids, teacher_ids, i, label_of(rows, links, i))
            finer += len(true) > 1
            for mass_NC in masses:
                found = mass_NC[i] / mass_NC[i].sum()
                for label, probability in true.items():
                    assert float(found[label]) == pytest.approx(probability, abs=1e-9)
    assert finer > 20


def label_of(rows: UnitRows, links: VocabLinks, i: int) -> dict[int, int]:
    """Label of each student id at token i."""
    assert rows.paths is not None
    of_token = rows.paths.slice(i, i + 1)
    paths, base = of_token.on(torch.device("cpu")), int(of_token.base_N)
    classes_K = links.student_label_K
    for _, shift_K in paths.shifted_students:
        classes_K = shift_K.numpy()
    labels = {k: int(label) if base == -2 else base for k, label in enumerate(classes_K)}
    labels |= dict(zip(paths.moved_id_E.tolist(), paths.moved_label_E.tolist(), strict=True))
    merged = dict(zip(of_token.merged_from_J.tolist(), of_token.merged_to_J.tolist(), strict=True))
    return {k: merged.get(label, label) for k, label in labels.items()}


def true_conditional(
    language: Language, student_ids: list[int], teacher_ids: list[int], i: int, labels: dict[int, int]
) -> dict[int, float]:
    student, teacher = language.student, language.teacher
    start = sum(map(len, (student.tokens[k] or b"" for k in student_ids[:i])))
    reached, before = 0, 0
    for k, token in enumerate(teacher_ids):
        if reached >= start:
            break
        before = k
        reached += len(teacher.tokens[token] or b"")
    mass: dict[int, float] = {}
    for p, others, others_read in language.written:
        if others[:i] == student_ids[:i] and others_read[:before] == teacher_ids[:before]:
            label = labels[others[i]]
            if label >= 0:
                mass[label] = mass.get(label, 0.0) + p
    return {label: p / sum(mass.values()) for label, p in mass.items()}


@every_language
def test_value_and_gradient_are_those_of_reading_every_token_on(name: str, form: Form) -> None:
    """On random logits, of texts that either model might write, cut ones too. Coarser, there is less to learn."""
    language = LANGUAGES[name]
    sides = language.student, language.teacher
    generator, rng = torch.Generator().manual_seed(0), random.Random(0)
    written = language.written if len(language.written) < 12 else rng.sample(language.written, 12)
    for number, (_, student_ids, teacher_ids) in enumerate(written):
        if number % 3 == 2:
            student_ids, teacher_ids = student_ids[:-1], teacher_ids[:-1]
        student_SV, teacher_TV = (
            2 * torch.randn(len(ids), len(side.tokens), generator=generator, dtype=torch.float64)
            for ids, side in ((student_ids, language.student), (teacher_ids, language.teacher))
        )
        leaf_SV, other_SV = student_SV.clone().requires_grad_(), student_SV.clone().requires_grad_()
        reference = response_loss(*sides, student_ids, teacher_ids, other_SV, teacher_TV, 1e-9)
        rows = rows_of(*sides, [alignment_of(*sides, student_ids, teacher_ids)])
        loss = objective_of(*sides)(chunk_of(*sides, rows, leaf_SV, teacher_TV)).loss_U.sum()
        if form == "coarse":
            assert float(loss.detach()) < float(reference.detach()) * (1 + 1e-7), student_ids
            continue
        assert float(loss.detach()) == pytest.approx(float(reference.detach()), rel=1e-7), student_ids
        loss.backward()
        reference.backward()
        torch.testing.assert_close(leaf_SV.grad, other_SV.grad, rtol=1e-6, atol=1e-8)


@every_language
@pytest.mark.parametrize("stopped", [True, False])
def test_no_row_of_another_response_is_read(name: str, stopped: bool) -> None:
    """Behind a response that was cut lies the next one's first row: its ids and logits change nothing."""
    language = LANGUAGES[name]
    sides = language.student, language.teacher
    generator = torch.Generator().manual_seed(1)
    (_, *first), (_, *other), (_, *third) = language.written[0], language.written[-1], language.written[1]
    if not stopped:
        first = [ids[:-1] for ids in first]
    found = []
    for neighbour in (other, third):
        alignments = [alignment_of(*sides, *ids) for ids in (neighbour, first, neighbour)]
        rows = rows_of(*sides, alignments)
        logits = []
        for place, side in enumerate(sides):
            own = torch.Generator().manual_seed(2 + place)
            parts = [
                torch.randn(len(ids[place]), len(side.tokens), generator=own if ids is first else generator).double()
                for ids in (neighbour, first, neighbour)
            ]
            logits.append(torch.cat(parts))
        leaf_SV = logits[0].requires_grad_()
        losses = objective_of(*sides)(chunk_of(*sides, rows, leaf_SV, logits[1])).loss_U
        units = slice(alignments[0].num_units, alignments[0].num_units + alignments[1].num_units)
        (gradient_SV,) = torch.autograd.grad(losses[units].sum(), leaf_SV)
        tokens = slice(len(neighbour[0]), len(neighbour[0]) + len(first[0]))
        assert not gradient_SV[: tokens.start].any()
        assert not gradient_SV[tokens.stop :].any()
        found.append((losses[units].detach(), gradient_SV[tokens]))
    torch.testing.assert_close(found[0], found[1], rtol=1e-12, atol=1e-14)


def test_lost_stretches_and_the_end_of_the_teachers_context_end_the_path() -> None:
    """A unit that is not supervised is in nobody's path: its rows may hold anything."""
    language = LANGUAGES["words"]
    sides = language.student, language.teacher
    _, student_ids, teacher_ids = language.written[0]
    alignment = alignment_of(*sides, student_ids, teacher_ids)
    for lost in range(alignment.num_units):
        supervised_U = alignment.supervised_U.copy()
        supervised_U[lost] = False
        rows = rows_of(*sides, [replace(alignment, supervised_U=supervised_U)])
        assert rows.paths is not None
        skipped = range(*alignment.units_U6[lost, 2:4].tolist())
        assert not set(rows.paths.step_row_P.tolist()) & set(skipped)
        teacher_TV = torch.zeros(len(teacher_ids), len(language.teacher.tokens), dtype=torch.float64)
        teacher_TV[list(skipped)] = torch.nan
        student_SV = torch.zeros(len(student_ids), len(language.student.tokens), dtype=torch.float64)
        losses = objective_of(*sides)(chunk_of(*sides, rows, student_SV, teacher_TV))
        assert torch.isfinite(losses.loss_U).all()


def test_one_tokenizer_on_both_sides_is_distillation_over_the_full_vocabulary() -> None:
    student = LANGUAGES["words"].student
    text = b"unhappy the hap"
    ids = [*greedy_ids(student, text), student.stop_ids[0]]
    objective = TokenConditionalLoss(floor=1e-30)
    reader = reader_of(student)
    objective.use(VocabLinks.build(reader, reader, same_tokenizer=True))
    shared = shared_vocab_of(student, student)
    rows = build_unit_rows([alignment_of(student, student, ids, ids)], shared, path_builder=objective.path_builder)
    generator = torch.Generator().manual_seed(0)
    student_SV, teacher_TV = (
        torch.randn(len(ids), len(student.tokens), generator=generator, dtype=torch.float64) for _ in range(2)
    )
    chunk = chunk_of(student, student, rows, student_SV, teacher_TV)
    torch.testing.assert_close(objective(chunk).loss_U, SharedVocabLoss()(chunk).loss_U)


def test_a_character_that_merges_with_the_token_before_does_not_rule_out_its_kind() -> None:
    """The teacher owns `=r` and `=T`; other letters stand behind `=` as before."""
    alphabet = "rTab= "
    student, teacher = vocabulary(alphabet), vocabulary(alphabet, "=r", "=T")
    for text in ("=a", "=b"):
        ids = [greedy_ids(side, text.encode()) for side in (student, teacher)]
        paths = rows_of(student, teacher, [alignment_of(student, teacher, *ids)]).paths
        assert paths is not None
        assert not paths.kinds_N.any()
        assert not paths.step_kinds_P.any()


def test_it_refuses_to_run_without_paths() -> None:
    language = LANGUAGES["words"]
    sides = language.student, language.teacher
    _, student_ids, teacher_ids = language.written[0]
    rows = build_unit_rows([alignment_of(*sides, student_ids, teacher_ids)], shared_vocab_of(*sides))
    logits = (
        torch.zeros(len(ids), len(side.tokens)) for ids, side in zip((student_ids, teacher_ids), sides, strict=True)
    )
    with pytest.raises(RecipeError, match="no paths"):
        TokenConditionalLoss()(chunk_of(*sides, rows, *logits))
    with pytest.raises(RecipeError, match="floor is 0"):
        TokenConditionalLoss(floor=0.0)
