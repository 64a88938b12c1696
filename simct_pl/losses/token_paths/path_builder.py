"""The teacher's path around each student token of some responses.

In: alignments and an Asker. Out: TokenPaths. A response's rows are counted as in UnitRows: they follow those of the
response before it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from simct_pl.losses.token_paths import tables as columns
from simct_pl.losses.token_paths.answers import Answers, Inside
from simct_pl.losses.token_paths.asking import Asker
from simct_pl.losses.token_paths.categories import CLASSES, DROPPED
from simct_pl.losses.token_paths.halves import Along, Before
from simct_pl.losses.token_paths.kept import KeptAnswers
from simct_pl.losses.token_paths.neighbours import Front, Ids, Side
from simct_pl.losses.token_paths.paths import TokenPaths
from simct_pl.losses.token_paths.places import LOOK_BACK, Flat, Places
from simct_pl.progress import progress
from simct_pl.tokenization.readings import without_collecting
from simct_pl.types import UnitAlignment

_MANY_QUESTIONS = 200  # that were never asked before take seconds, and show a bar
_NOT_LISTED = -3


class PathBuilder:
    """Makes TokenPaths of a pair's responses. Questions that were asked before cost an array operation each.

    kept: where answers are kept beyond the process, if anywhere.
    """

    def __init__(self, asker: Asker, kept: KeptAnswers | None = None) -> None:
        self.asker, self.links, self.kept = asker, asker.links, kept
        self.answers = Answers(asker, None if kept is None else kept.read())

    def build(self, alignments: Sequence[UnitAlignment]) -> TokenPaths:
        """Paths of the student tokens in supervised units, in order."""
        places = Places.of(alignments, self.links)
        self.answers.make_room()
        return self._gather(places, self._ask(places))

    def _ask(self, places: Places) -> np.ndarray:
        """The question of each student token, as a row of Answers.questions, int64 [N]."""
        keys = places.keys(self.links).tolist()
        number_N = np.array(self.answers.numbers(keys), np.int64)
        missing = np.flatnonzero(number_N < 0).tolist()
        if not missing:
            return number_N
        new, start = {keys[i]: i for i in missing}, time.perf_counter()
        title, is_shown = "asks the tokenizers about new tokens", len(new) > _MANY_QUESTIONS
        with progress(title, len(new), shown=is_shown) as bar, without_collecting():
            for key, i in new.items():
                self.answers.ask(key, self._question(places, i))
                bar.advance()
        if self.kept is not None:
            self.kept.asked(self.answers.tables, time.perf_counter() - start)
        return np.array(self.answers.numbers(keys), np.int64)

    def _question(self, places: Places, i: int) -> tuple[Along, Before | None] | Inside:
        student, teacher = places.student, places.teacher
        at, after, origin, first = (int(array[i]) for array in (places.at, places.after, places.origin, places.first))
        own, inner = int(student.ids[i]), tuple(teacher.ids[at:after].tolist())
        written, outside = tuple(student.ids[first:i].tolist()), int(places.outside[i])
        ends_early = bool(places.ends_early[i])
        if places.is_inside[i]:
            part = self._text(written)[outside:]
            covering, earlier = int(teacher.ids[at]), self._overreaching("teacher", teacher, at, part)
            previous = int(teacher.ids[at - 1]) if at > teacher.first[at] else None
            return Inside(written, outside, covering, inner, own, earlier, previous, ends_early)
        along = Along(own, inner, ends_early, bool(places.is_stop[i]))
        if origin == at or self.links.same_tokenizer:
            return along, None
        last, before = int(teacher.ids[origin]), int(student.ids[i - 1])
        earlier = self._overreaching("teacher", teacher, origin, self.links.teacher.table.tokens[last])
        own_earlier = self._overreaching("student", student, i - 1, self.links.student.table.tokens[before])
        return along, Before(written, outside, last, earlier, own_earlier)

    def _overreaching(self, side: Side, flat: Flat, token: int, part: bytes) -> tuple[Front, ...]:
        """Of the tokens before one; part: what lies between them and the position."""
        before = flat.ids[max(token - LOOK_BACK, int(flat.first[token])) : token]
        return self.asker.overreaching(side, tuple(before.tolist()), part)

    def _text(self, student_ids: Ids) -> bytes:
        tokens = self.links.student.table.tokens
        return b"".join([tokens[k] for k in student_ids])

    def _gather(self, places: Places, question_N: np.ndarray) -> TokenPaths:
        tables, teacher = self.answers.tables, places.teacher
        asked_N = tables.questions.rows[question_N]
        count_N = asked_N[:, columns.NUM_STEPS]
        token_P = np.repeat(np.arange(len(count_N)), count_N)
        within_P = _within(count_N)
        steps_P = tables.steps.rows[asked_N[token_P, columns.FIRST_STEP] + within_P]
        on_P = (places.at - asked_N[:, columns.IS_BACK])[token_P] + within_P
        merged_J3 = self._merged(places, asked_N, steps_P, on_P)
        arrays = {
            "base_N": asked_N[:, columns.BASE],
            "own_N": asked_N[:, columns.OWN],
            "num_own_N": asked_N[:, columns.NUM_OWN],
            "kinds_N": asked_N[:, columns.KINDS],
            "moved_list_N2": asked_N[:, [columns.LIST_ALONG, columns.LIST_BEFORE]],
            "step_token_P": token_P,
            "step_row_P": teacher.row[on_P],
            "step_id_P": teacher.ids[on_P],
            "step_base_P": steps_P[:, columns.STEP_BASE],
            "step_kinds_P": steps_P[:, columns.STEP_KINDS],
            "step_list_P": steps_P[:, columns.STEP_LIST],
            "shift_N": asked_N[:, columns.SHIFT],
            "step_shift_P": steps_P[:, columns.STEP_SHIFT],
            "merged_token_J": merged_J3[:, 0],
            "merged_from_J": merged_J3[:, 1],
            "merged_to_J": merged_J3[:, 2],
        }
        tensors: dict[str, Any] = {
            name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()
        }
        num_own = int(asked_N[:, columns.NUM_OWN].max(initial=0))
        sizes: dict[str, Any] = {"num_classes": self.links.num_labels, "num_labels": self.links.num_labels + num_own}
        return TokenPaths(**tensors, lists=tables.lists, shifts=tables.shifts, **sizes)

    def _merged(self, places: Places, asked_N: np.ndarray, steps_P: np.ndarray, on_P: np.ndarray) -> np.ndarray:
        """(token, from, to) of labels that are one, by token, int64 [J, 3].

        Where the path ends behind the student's token, its last token begins with that token: the label it would have
        if it left the path there is one with the path's end.
        """
        last_N = np.cumsum(asked_N[:, columns.NUM_STEPS]) - 1
        token_K = np.flatnonzero(places.teacher.end[on_P[last_N]] > places.student.end)
        last_K = last_N[token_K]
        steps_K, on_K = steps_P[last_K], places.teacher.ids[on_P[last_K]]
        tables = self.answers.tables
        label_K = tables.lists.labels(steps_K[:, columns.STEP_LIST], on_K, _NOT_LISTED)
        label_K = np.where(label_K == _NOT_LISTED, steps_K[:, columns.STEP_BASE], label_K)
        for i in np.flatnonzero((label_K == CLASSES) & (steps_K[:, columns.STEP_SHIFT] >= 0)).tolist():
            label_K[i] = tables.shifts.teacher_label(int(steps_K[i, columns.STEP_SHIFT]), int(on_K[i]))
        label_K = np.where(label_K == CLASSES, self.links.teacher_label_K[on_K], label_K)
        own_K = asked_N[token_K, columns.OWN]
        differs_K = (label_K != own_K) & (label_K != DROPPED) & (own_K != DROPPED)
        count_N = asked_N[:, columns.NUM_MERGED]
        token_J = np.repeat(np.arange(len(count_N)), count_N)
        pair_J2 = tables.merged.rows[asked_N[token_J, columns.FIRST_MERGED] + _within(count_N)]
        found_J3 = np.column_stack([token_J, pair_J2])
        if not differs_K.any():
            return found_J3
        return _joined(found_J3, np.column_stack([token_K, label_K, own_K])[differs_K])


def _joined(found_J3: np.ndarray, ends_K3: np.ndarray) -> np.ndarray:
    """Merged labels, and one pair more for some tokens, so that every label is merged at once and not on the way."""
    by_token: dict[int, list[tuple[int, int]]] = {}
    for token, one, other in found_J3.tolist():
        by_token.setdefault(token, []).append((one, other))
    for token, one, other in ends_K3.tolist():
        pairs = by_token.get(token, [])
        known = dict(pairs)
        one, other = known.get(one, one), known.get(other, other)
        if one != other and DROPPED not in (one, other):
            pairs = [(a, other if b == one else b) for a, b in pairs]
            by_token[token] = [*pairs, (one, other)]
    rows = [(token, *pair) for token in sorted(by_token) for pair in by_token[token]]
    return np.array(rows, np.int64).reshape(-1, 3)


def _within(count_N: np.ndarray) -> np.ndarray:
    """0..c-1 for each count c, concatenated."""
    return np.arange(count_N.sum()) - np.repeat(np.cumsum(count_N) - count_N, count_N)
