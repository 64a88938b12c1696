"""Paths of the teacher around each student token, as index tensors and without a tokenizer.

Their figures are those of Gemma-3 and Qwen3 on English and code, both ways: classes for six in ten ids of the smaller
vocabulary, most of them of one id a side and a few of thousands; nine tokens in ten at a place where both cut; two
steps a token; lists of 59 and 376 student ids a token, and of 2,400 and 6,800 teacher ids.
"""

from __future__ import annotations

import numpy as np
import torch

from simct_pl.losses.inputs.unit_rows import UnitRows
from simct_pl.losses.token_paths.categories import CLASSES, DROPPED
from simct_pl.losses.token_paths.lists import EMPTY, ListStore
from simct_pl.losses.token_paths.masses import SideLabels
from simct_pl.losses.token_paths.paths import TokenPaths
from simct_pl.losses.token_paths.shift import ShiftStore

CLASS_SHARE = 0.62  # classes, for each id of the smaller vocabulary
REST_SHARE = 0.13  # of the ids that are not the only one of their class: those that no class of text holds
LARGE_SHARE = 0.2  # of the classes, which hold all other such ids
NUM_LISTS = 64  # of each kind; a text's tokens come back, and so do their lists
STUDENT_ENTRIES, TEACHER_ENTRIES = 200, 4000
FRONT_SHARE = 0.9  # of places where both cut: those at which the token before could have been a longer one
OWN_LABELS = 32  # of a token inside a teacher token

Step = tuple[int, int, int]  # row, base, list


def make_labels(student_vocab: int, teacher_vocab: int, seed: int) -> tuple[SideLabels, SideLabels]:
    """A class for each id of both sides."""
    generator = np.random.default_rng(seed + 1)
    num_classes = int(CLASS_SHARE * min(student_vocab, teacher_vocab))
    sides = []
    for vocab in (student_vocab, teacher_vocab):
        more = generator.integers(0, max(int(LARGE_SHARE * num_classes), 1), vocab - num_classes)
        more[generator.random(len(more)) < REST_SHARE] = 0
        label_K = generator.permutation(np.concatenate([np.arange(num_classes), more]))
        sides.append(SideLabels(torch.from_numpy(label_K), torch.ones(1, vocab, dtype=torch.bool)))
    return sides[0], sides[1]


def make_paths(rows: UnitRows, labels: tuple[SideLabels, SideLabels], seed: int) -> TokenPaths:
    """Of all student tokens of one response."""
    generator = np.random.default_rng(seed + 2)
    student_label_K, teacher_label_K = (side.label_K.numpy() for side in labels)
    num_classes = int(student_label_K.max()) + 1
    own = num_classes + np.arange(OWN_LABELS)
    store = ListStore()
    moved = _lists(generator, store, student_label_K, student_label_K, STUDENT_ENTRIES)
    fronts = _lists(generator, store, teacher_label_K, teacher_label_K, TEACHER_ENTRIES)
    inner = _lists(generator, store, teacher_label_K, own, TEACHER_ENTRIES)
    ids_N, unit_N, first_U, teacher_first_U, end_U = (
        array.tolist()
        for array in (
            rows.student_ids_N,
            rows.student_unit_N,
            rows.student_first_U,
            rows.teacher_first_U,
            torch.cat([rows.teacher_first_U[1:], torch.tensor([len(rows.teacher_ids_M)])]),
        )
    )
    tokens: list[tuple[int, int, int, int]] = []  # base, own, num_own, list
    steps: list[tuple[int, Step]] = []
    for i, (token_id, unit) in enumerate(zip(ids_N, unit_N, strict=True)):
        first, last = teacher_first_U[unit], end_U[unit] - 1
        if i != first_U[unit]:
            tokens.append((DROPPED, int(own[0]), OWN_LABELS, int(generator.choice(moved))))
            steps.append((i, (last, DROPPED, int(generator.choice(inner)))))
            continue
        tokens.append((CLASSES, int(student_label_K[token_id]), 0, int(generator.choice(moved))))
        if first and generator.random() < FRONT_SHARE:
            steps.append((i, (first - 1, DROPPED, int(generator.choice(fronts)))))
        steps.append((i, (first, CLASSES, EMPTY)))
        steps += [(i, (row, DROPPED, int(generator.choice(fronts)))) for row in range(first + 1, last + 1)]
    return _as_tensors(rows, tokens, steps, store, num_classes)


def _as_tensors(
    rows: UnitRows,
    tokens: list[tuple[int, int, int, int]],
    steps: list[tuple[int, Step]],
    store: ListStore,
    num_classes: int,
) -> TokenPaths:
    base_N, own_N, num_own_N, list_N = torch.tensor(tokens).T.contiguous()
    row_P, base_P, list_P = torch.tensor([step for _, step in steps]).T.contiguous()
    nothing_J = torch.empty(0, dtype=torch.int64)
    return TokenPaths(
        base_N=base_N,
        own_N=own_N,
        num_own_N=num_own_N,
        kinds_N=torch.zeros_like(base_N),
        moved_list_N2=torch.stack([list_N, torch.full_like(list_N, EMPTY)], 1),
        step_token_P=torch.tensor([i for i, _ in steps]),
        step_row_P=row_P,
        step_id_P=rows.teacher_ids_M[row_P],
        step_base_P=base_P,
        step_kinds_P=torch.zeros_like(base_P),
        step_list_P=list_P,
        merged_token_J=nothing_J,
        merged_from_J=nothing_J,
        merged_to_J=nothing_J,
        shift_N=torch.full_like(base_N, -1),
        step_shift_P=torch.full_like(base_P, -1),
        lists=store,
        shifts=ShiftStore(),
        num_classes=num_classes,
        num_labels=num_classes + OWN_LABELS,
    )


def _lists(
    generator: np.random.Generator, store: ListStore, label_K: np.ndarray, labels: np.ndarray, mean: int
) -> np.ndarray:
    """Numbers of lists of distinct ids, some of them ten times as long as others. labels: what an id may have."""
    sizes = mean * generator.lognormal(-0.5, 1.0, NUM_LISTS)
    numbers = []
    for size in sizes:
        ids = generator.choice(len(label_K), min(int(size) + 1, len(label_K) // 4), replace=False)
        numbers.append(store.add(dict(zip(ids.tolist(), generator.choice(labels, len(ids)).tolist(), strict=True))))
    return np.array(numbers)
