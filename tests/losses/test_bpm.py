"""BPM's target by hand, its white-space rule, and that the scenes hold every kind of row."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from simct_pl import BPMLoss
from simct_pl.errors import RecipeError
from simct_pl.losses.base import UnitChunk
from simct_pl.losses.bpm import BytePrefixes
from simct_pl.losses.inputs.unit_rows import build_unit_rows
from simct_pl.losses.inputs.vocab_tables import PairTables
from tests.losses.test_all_objectives import chunk_of, scene_of
from tests.reference.bpm import bpm
from tests.reference.bridge import alignment_of, scene_inputs, shared_vocab_of
from tests.reference.objectives import response_loss
from tests.reference.vocabulary import Side

DIGITS = (b"0", b"2", b"8")


def chunk(student: Side, teacher: Side, student_ids: list[int], teacher_ids: list[int], teacher_p: Tensor) -> UnitChunk:
    shared = shared_vocab_of(student, teacher)
    rows = build_unit_rows([alignment_of(student, teacher, student_ids, teacher_ids)], shared)
    logits = torch.zeros(len(student_ids), len(student.tokens), dtype=torch.float64)
    return UnitChunk(logits[rows.student_rows_N], teacher_p.log()[rows.teacher_rows_M], rows, PairTables.build(shared))


def targets(given: UnitChunk, student: Side, teacher: Side) -> Tensor:
    objective = BPMLoss()
    prefixes = BytePrefixes(shared_vocab_of(student, teacher))
    objective.use(prefixes.shared)
    return objective._targets(given, prefixes, len(student.tokens))[0]


def test_a_token_that_spans_three_takes_what_its_path_is_worth() -> None:
    """`20`, `202` beside `2`, against digits with .9 each: `202` .729, `20` the rest of .81, `2` the rest of .9."""
    student, teacher = Side((*DIGITS, b"20", b"202")), Side(DIGITS)
    p = torch.tensor([[0.04, 0.9, 0.06], [0.9, 0.04, 0.06], [0.04, 0.9, 0.06]], dtype=torch.float64)
    (found,) = targets(chunk(student, teacher, [4], [1, 0, 1], p), student, teacher)
    assert found.tolist() == pytest.approx([0.04, 0.9 - 0.81, 0.06, 0.81 - 0.729, 0.729, 0.0])


def test_inside_a_teacher_token_its_row_is_asked_among_those_that_begin_alike() -> None:
    """Behind `2` of `20`: `20` .5, `28` .2, and `2` itself, which the residual keeps; `80` says nothing."""
    student, teacher = Side(DIGITS), Side((*DIGITS, b"20", b"28", b"80"))
    p = torch.tensor([[0.02, 0.1, 0.03, 0.5, 0.2, 0.15]], dtype=torch.float64)
    first, second = targets(chunk(student, teacher, [1, 0], [3], p), student, teacher)
    assert first.tolist() == pytest.approx([0.02, 0.8, 0.18, 0.0])
    assert second.tolist() == pytest.approx([0.5 / 0.8, 0.0, 0.2 / 0.8, 0.1 / 0.8])


def test_rows_of_white_space_are_left_out_unless_asked_for() -> None:
    """Two spaces, one token to the teacher, then a tab and a letter, one token to both."""
    student, teacher = Side((b" ", b"\t", b"a")), Side((b" ", b"\t", b"a", b"  "))
    p = torch.tensor([[0.1, 0.2, 0.3, 0.4]] * 3, dtype=torch.float64)
    given = chunk(student, teacher, [0, 0, 1, 2], [3, 1, 2], p)
    for skip_blank, expected in ((True, [False, False, True]), (False, [True, True, True])):
        objective = BPMLoss(skip_blank=skip_blank)
        objective.use(shared_vocab_of(student, teacher))
        losses = objective(given)
        assert losses.supervised_U.tolist() == expected
        assert (losses.loss_U > 1e-3).tolist() == expected


def test_more_scenes_agree_with_the_reference_and_hold_every_kind_of_row() -> None:
    """Rows at a boundary of the teacher's and inside its tokens, with student tokens that reach beyond and without."""
    kinds = set()
    for seed in range(40):
        scene = scene_of(seed)
        given = chunk_of(scene, scene.student_logits_SV, scene.teacher_logits_TV)
        prefixes, objective = BytePrefixes(scene_inputs(scene)[1]), BPMLoss(skip_blank=False)
        objective.use(prefixes.shared)
        target_NX, _ = objective._targets(given, prefixes, scene.student_logits_SV.shape[1])
        torch.testing.assert_close(target_NX.sum(-1), torch.ones(len(target_NX), dtype=torch.float64))
        expected = response_loss(bpm(0.5, False), scene, scene.student_logits_SV, scene.teacher_logits_TV)
        assert float(objective(given).loss_U.sum()) == pytest.approx(float(expected), rel=1e-9)
        kinds |= {(bool(path.written), min(len(path.longer), 2)) for path in prefixes.paths(given)}
    assert kinds >= {(False, 0), (True, 0), (False, 1), (False, 2), (True, 1)}


def test_without_a_pair_it_says_what_to_do() -> None:
    scene = scene_of(0)
    with pytest.raises(RecipeError, match="call prepare"):
        BPMLoss()(chunk_of(scene, scene.student_logits_SV, scene.teacher_logits_TV))
