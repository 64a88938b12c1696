"""Labels of both vocabularies where the position lies inside a teacher token, and the store that paths point into.

In: how the teacher reads student tokens behind some bytes, which `shifts` asks. Out: Shift, ShiftStore.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from simct_pl.losses.token_paths.neighbours import MANY, Side
from simct_pl.losses.token_paths.vocab_links import DROPPED, STOP, VocabLinks
from simct_pl.tokenization.readings import Readings


@dataclass(frozen=True, eq=False)
class ShiftLabels:
    """The label of each id of both vocabularies.

    sizes: of the vocabularies. base: the label of student tokens that are not in student_ids. student_ids,
    student_labels, teacher_ids, teacher_labels: int64, by id; other teacher tokens are DROPPED.
    """

    sizes: tuple[int, int]
    base: int
    student_ids: np.ndarray
    student_labels: np.ndarray
    teacher_ids: np.ndarray
    teacher_labels: np.ndarray

    @cached_property
    def student_label_K(self) -> np.ndarray:
        """int64, the label of each student id, or DROPPED."""
        label_K = np.full(self.sizes[0], self.base, np.int64)
        label_K[self.student_ids] = self.student_labels
        return label_K

    @cached_property
    def teacher_label_K(self) -> np.ndarray:
        """The same of the teacher."""
        label_K = np.full(self.sizes[1], DROPPED, np.int64)
        label_K[self.teacher_ids] = self.teacher_labels
        return label_K

    @cached_property
    def labels_key(self) -> tuple[object, ...]:
        """Equal where all labels are."""
        arrays = self.student_ids, self.student_labels, self.teacher_ids, self.teacher_labels
        return self.base, *(_digest(part) for part in arrays)

    def student_label(self, tokens: np.ndarray) -> np.ndarray:
        """Labels of some ids, int64."""
        return _label(self.student_ids, self.student_labels, tokens, self.base)

    def without_base(self, tokens: np.ndarray) -> np.ndarray:
        """Labels of some student ids where those of the base are left out."""
        labels = self.student_label(tokens)
        return np.where(labels == self.base, DROPPED, labels)

    def teacher_label(self, tokens: np.ndarray) -> np.ndarray:
        return _label(self.teacher_ids, self.teacher_labels, tokens, DROPPED)


@dataclass(frozen=True, eq=False)
class Shift(ShiftLabels):
    """Labels of both vocabularies behind some bytes, which part of a teacher token is.

    readings: how the teacher reads student tokens behind those bytes, which the spellings begin with. base: of student
    tokens in front of which the teacher cuts as the student did. edges_E3: int64, (label, student id, teacher id) of
    each link, in order. Labels are names within a row: they count from STOP + 1, and are the position's own where they
    go past VocabLinks.num_labels; num_own: how many do.
    """

    readings: Readings
    whole: int | None
    contradicting: frozenset[int]
    edges_E3: np.ndarray
    num_own: int

    @classmethod
    def build(
        cls,
        links: VocabLinks,
        readings: Readings,
        begun_E2: np.ndarray,
        whole: int | None,
        contradicting: tuple[int, ...],
        lost: np.ndarray,
    ) -> Shift:
        """begun_E2: (student id, teacher id), what the student begins with behind some bytes of a teacher token.

        whole: the teacher token that ends there. contradicting: student tokens in front of which the teacher would have
        cut otherwise before. lost: those in front of which it would have cut before `whole`, unless they go along with
        a longer token of its own: the rest of it would take a row off the path.
        """
        is_out_K = np.zeros(len(links.student.table), bool)
        is_out_K[list(contradicting)] = True
        begun_E2 = begun_E2[~is_out_K[begun_E2[:, 0]]]
        is_kept_K = np.zeros(len(links.teacher.table), bool)
        is_kept_K[begun_E2[:, 1]] = True
        is_kept_K[[] if whole is None else [whole]] = True
        source_E, first_E = readings.source_E, readings.first_E
        is_linked_E = is_kept_K[first_E] & ~is_out_K[source_E]
        edges_E2 = np.concatenate([begun_E2, np.stack([source_E, first_E], 1)[is_linked_E]])
        edges_E2 = np.column_stack(np.divmod(np.unique(edges_E2 @ [len(is_kept_K), 1]), len(is_kept_K)))
        students, teachers = np.unique(edges_E2[:, 0]), np.flatnonzero(is_kept_K)
        student_labels, teacher_labels = _components(edges_E2, students, teachers)
        is_out_K[lost] = True
        is_out_K[students] = False
        out = np.flatnonzero(is_out_K)
        edges_E3 = np.column_stack([student_labels[np.searchsorted(students, edges_E2[:, 0])], edges_E2])
        student_ids, student_labels = np.append(students, out), np.append(student_labels, np.full(len(out), DROPPED))
        order = np.argsort(student_ids)
        return cls(
            (len(is_out_K), len(is_kept_K)),
            DROPPED if whole is None else int(_label(teachers, teacher_labels, np.array(whole), DROPPED)),
            student_ids[order],
            student_labels[order],
            teachers,
            teacher_labels,
            readings,
            whole,
            frozenset(contradicting),
            edges_E3[np.argsort(edges_E3[:, 0], kind="stable")],
            max(int(teacher_labels.max(initial=0)) + 1 - links.num_labels, 0),
        )

    @property
    def is_large(self) -> bool:
        """Whether it is better shared as vectors than listed at each position."""
        return max(len(self.student_ids), len(self.teacher_ids)) > MANY

    @cached_property
    def key(self) -> tuple[object, ...]:
        """Equal where everything is."""
        return id(self.readings), self.whole, self.contradicting, self.labels_key, _digest(self.edges_E3)

    def edges(self, label: int) -> np.ndarray:
        """(student id, teacher id) of a label's links, int64 [E, 2]."""
        first, last = np.searchsorted(self.edges_E3[:, 0], [label, label + 1])
        return self.edges_E3[first:last, 1:]


def _components(edges_E2: np.ndarray, students: np.ndarray, teachers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels of the students and of the teachers, which hold all ids of the edges, in order."""
    total = len(students) + len(teachers)
    pairs = np.searchsorted(students, edges_E2[:, 0]), len(students) + np.searchsorted(teachers, edges_E2[:, 1])
    graph = coo_array((np.ones(len(edges_E2), bool), pairs), shape=(total, total))
    labels = STOP + 1 + connected_components(graph, directed=False)[1].astype(np.int64)
    return labels[: len(students)], labels[len(students) :]


def _label(ids: np.ndarray, labels: np.ndarray, tokens: np.ndarray, otherwise: int) -> np.ndarray:
    if not len(ids):
        return np.full(np.shape(tokens), otherwise)
    place = np.minimum(np.searchsorted(ids, tokens), len(ids) - 1)
    return np.where(ids[place] == tokens, labels[place], otherwise)


def _digest(array: np.ndarray) -> bytes:
    return hashlib.blake2b(array.tobytes(), digest_size=16).digest()


class ShiftStore:
    """Shifts by number, and their labels on the device that reads them; -1 is none."""

    def __init__(self) -> None:
        self._shifts: list[ShiftLabels] = []
        self._numbers: dict[tuple[object, ...], int] = {}
        self._labels: dict[tuple[int, str, torch.device], Tensor] = {}

    def number(self, shift: ShiftLabels | None) -> int:
        """That of a shift with the same labels, if there is one."""
        if shift is None:
            return -1
        if shift.labels_key not in self._numbers:
            self._numbers[shift.labels_key] = len(self._shifts)
            self._shifts.append(shift)
        return self._numbers[shift.labels_key]

    def arrays(self) -> dict[str, np.ndarray]:
        """All labels; see `of`. shifts: int64 [shifts, 5], both sizes, the base, and how many labels either side has.
        shift_labels: int32 [.., 2], (id, label) of the student's and then the teacher's, shift after shift.
        """
        heads = [(*one.sizes, one.base, len(one.student_ids), len(one.teacher_ids)) for one in self._shifts]
        parts = [
            np.stack(side, 1).astype(np.int32)
            for one in self._shifts
            for side in ((one.student_ids, one.student_labels), (one.teacher_ids, one.teacher_labels))
        ]
        labels = np.concatenate([np.zeros((0, 2), np.int32), *parts])
        return {"shifts": np.array(heads, np.int64).reshape(-1, 5), "shift_labels": labels}

    @classmethod
    def of(cls, arrays: dict[str, np.ndarray]) -> ShiftStore:
        """What `arrays` was told."""
        found, start = cls(), 0
        for *sizes, base, num_students, num_teachers in arrays["shifts"].tolist():
            middle, end = start + num_students, start + num_students + num_teachers
            students, teachers = (
                arrays["shift_labels"][at].astype(np.int64).T for at in (slice(start, middle), slice(middle, end))
            )
            found.number(ShiftLabels((sizes[0], sizes[1]), base, *students, *teachers))
            start = end
        return found

    def teacher_label(self, number: int, token: int) -> int:
        return int(self._shifts[number].teacher_label(np.array(token)))

    def labels(self, number: int, side: Side, device: torch.device) -> Tensor:
        """The label of each id of a side, int64 [K]; DROPPED where it has none."""
        key = number, side, device
        if key not in self._labels:
            shift = self._shifts[number]
            label_K = shift.student_label_K if side == "student" else shift.teacher_label_K
            self._labels[key] = torch.from_numpy(label_K).to(device)
        return self._labels[key]
