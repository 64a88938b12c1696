"""Flattening alignments into rows: slices are chunks of their own, and responses only share the arrays."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import torch

from simct_pl.losses.inputs.unit_rows import UnitRows, build_unit_rows
from tests.reference.bridge import scene_inputs
from tests.reference.scenes import random_scene


def assert_same_rows(found: UnitRows, expected: UnitRows) -> None:
    assert found.paths is expected.paths is None
    for field in dataclasses.fields(UnitRows):
        if field.name != "paths":
            assert torch.equal(getattr(found, field.name), getattr(expected, field.name)), field.name


def test_rows_follow_the_units() -> None:
    """Of the second of two equal responses, whose rows come after those of the first."""
    scene = random_scene(1)
    alignment, shared_vocab = scene_inputs(scene)
    rows = build_unit_rows([alignment, alignment], shared_vocab)
    assert rows.num_units == 2 * len(scene.units)
    for index, unit in enumerate(scene.units, start=len(scene.units)):
        mine = rows.student_unit_N == index
        theirs = rows.teacher_unit_M == index
        assert rows.student_ids_N[mine].tolist() == list(unit.student_ids)
        assert rows.teacher_ids_M[theirs].tolist() == list(unit.teacher_ids)
        assert int(rows.student_rows_N[mine][0]) == alignment.num_student_tokens + unit.student_start
        assert int(rows.teacher_rows_M[theirs][0]) == alignment.num_teacher_tokens + unit.teacher_start
        assert int(rows.student_first_U[index]) == int(mine.nonzero()[0])
        assert int(rows.teacher_first_U[index]) == int(theirs.nonzero()[0])


def test_slices_tile_the_rows() -> None:
    alignment, shared_vocab = scene_inputs(random_scene(1))
    rows = build_unit_rows([alignment], shared_vocab)
    cuts = [0, 1, 4, rows.num_units]
    parts = [rows.slice(start, end) for start, end in itertools.pairwise(cuts)]
    assert torch.equal(torch.cat([part.student_rows_N for part in parts]), rows.student_rows_N)
    assert torch.equal(torch.cat([part.teacher_ids_M for part in parts]), rows.teacher_ids_M)
    assert torch.equal(torch.cat([part.prefix_column_P for part in parts]), rows.prefix_column_P)
    assert all(int(part.student_first_U[0]) == 0 == int(part.student_unit_N[0]) for part in parts)
    assert_same_rows(rows.slice(0, rows.num_units), rows)


def test_unsupervised_units_have_no_rows() -> None:
    scene = random_scene(1)
    alignment, shared_vocab = scene_inputs(scene)
    supervised_U = np.arange(alignment.num_units) % 3 != 0
    rows = build_unit_rows([dataclasses.replace(alignment, supervised_U=supervised_U)], shared_vocab)
    kept = [unit for unit, is_kept in zip(scene.units, supervised_U, strict=True) if is_kept]
    assert rows.num_units == len(kept)
    assert rows.student_ids_N.tolist() == [token_id for unit in kept for token_id in unit.student_ids]


def test_prefix_columns_are_the_shared_proper_prefixes_of_units_that_are_no_token() -> None:
    scene = random_scene(1)
    alignment, shared_vocab = scene_inputs(scene)
    rows = build_unit_rows([alignment], shared_vocab)
    shared = [shared_vocab.student[token_id] for token_id in shared_vocab.student_ids_V[: shared_vocab.stop_column]]
    expected = [
        (index, column)
        for index, unit in enumerate(scene.units)
        if unit.text not in shared
        for column, token in enumerate(shared)
        if len(token) < len(unit.text) and unit.text.startswith(token)
    ]
    found = zip(rows.prefix_unit_P.tolist(), rows.prefix_column_P.tolist(), strict=True)
    assert sorted(found) == sorted(expected)
    assert expected


def test_no_response_at_all_is_an_empty_value() -> None:
    _, shared_vocab = scene_inputs(random_scene(1))
    rows = build_unit_rows([], shared_vocab)
    assert rows.num_units == 0
    assert len(rows.student_rows_N) == len(rows.teacher_rows_M) == 0


def test_prefixes_are_left_out_on_request() -> None:
    alignment, shared_vocab = scene_inputs(random_scene(1))
    rows = build_unit_rows([alignment], shared_vocab)
    without = build_unit_rows([alignment], shared_vocab, with_prefixes=False)
    assert len(rows.prefix_unit_P) > 0
    assert len(without.prefix_unit_P) == len(without.prefix_column_P) == 0
    assert torch.equal(without.column_U, rows.column_U)
