"""The categories of one student token that are not the classes of the vocabularies: what its neighbours change.

In: the student's and the teacher's tokens around a position, as ids. Out: Categories, labels for a few tokens. A label
below VocabLinks.num_labels is a class; the others count from there and are the position's own. Three questions, each
kept by its answer's key, since texts repeat themselves:

    behind   both models cut at the position: how the student's tokens go along the teacher's path, and leave it
    before   the same place: what would merge with the token before it, in the teacher's eyes and in the student's
    inside   the position lies inside a teacher token
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from simct_pl.losses.token_paths.shift import Shift
from simct_pl.losses.token_paths.vocab_links import DROPPED as DROPPED
from simct_pl.tokenization.readings import Readings

CLASSES = -2  # every id has the label of its class


@dataclass
class Step:
    """One row of the teacher. base: the label of all ids that are not listed, but for those that begin with a character
    of the kinds, a bit mask, which are dropped. listed: id → label. shift: where base is CLASSES, the labels in place
    of the classes.
    """

    base: int
    listed: dict[int, int] = field(default_factory=dict)
    kinds: int = 0
    shift: Shift | None = None


@dataclass
class Categories:
    """base: the label of all student tokens that are not in moved, id → label. kinds: as for a Step, of student tokens.
    steps: rows of the teacher, in order.

    own: the label of the realised token. merged: labels that are one here, (from, to). shift: as for a Step.
    """

    base: int
    moved: dict[int, int]
    steps: list[Step]
    own: int
    merged: list[tuple[int, int]]
    num_own_labels: int
    kinds: int = 0
    shift: Shift | None = None

    @cached_property
    def moved_arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """moved as (ids, labels), int64."""
        return as_arrays(self.moved)


def as_arrays(labels: dict[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Keys and values, int64."""
    ids, values = (np.fromiter(part, np.int64, len(labels)) for part in (labels.keys(), labels.values()))
    return ids, values


@dataclass(frozen=True)
class Crossings:
    """What the tokens before a position change there.

    reaching: teacher tokens that begin where the last one began and go past the position → the student token behind the
        position that they begin with. moved: student token → another whose category it shares. excluded: teacher tokens
        behind the position that the student would have merged with what it wrote. contradicting: student tokens in
        front of which the teacher would have cut otherwise, further back.
    student_kinds, teacher_kinds: bit masks over KINDS: a token that begins with such a character contradicts the cuts
        of the other side (three spaces are no token of their own in front of a letter).
    """

    reaching: dict[int, int]
    moved: dict[int, int]
    excluded: tuple[int, ...]
    contradicting: tuple[int, ...]
    student_kinds: int
    teacher_kinds: int

    @cached_property
    def main_step(self) -> Step:
        """The teacher's row at the position, at which every other id has the label of its class."""
        return Step(CLASSES, dict.fromkeys(self.excluded, DROPPED), self.teacher_kinds)


class Links:
    """Connected components of a position's tokens, named by labels.

    A node is an int: the label of a class or DROPPED, or what `student`, `teacher` and `default` say.
    num_students: ids of the student. num_own: labels from num_classes on that are taken.
    """

    def __init__(self, num_classes: int, num_students: int, num_teachers: int, num_own: int = 0) -> None:
        self.num_classes, self.num_own = num_classes, num_own
        self._sizes = num_students, num_teachers
        self._first = num_classes + num_own
        self._joined: list[np.ndarray] = []
        self._alone: dict[int, int] = {}
        self.merged: list[tuple[int, int]] = []

    def student(self, ids: np.ndarray) -> np.ndarray:
        """Nodes of student tokens."""
        return self._first + ids

    def teacher(self, depth: int, ids: np.ndarray) -> np.ndarray:
        """Nodes of teacher tokens at a depth of the path."""
        num_students, num_teachers = self._sizes
        return self._first + num_students + depth * num_teachers + ids

    def default(self, depth: int) -> int:
        """The node of all teacher tokens at a depth that are not named."""
        return CLASSES - 1 - depth

    def join(self, one: np.ndarray | int, other: np.ndarray | int) -> None:
        """Node by node."""
        self._joined.append(np.stack(np.broadcast_arrays(np.atleast_1d(one), other)))

    def label(self, nodes: np.ndarray) -> np.ndarray:
        """After the last join, int64."""
        known_V, component_V, label_C = self._components
        labels = nodes.copy()
        place = np.minimum(np.searchsorted(known_V, nodes), max(len(known_V) - 1, 0))
        is_known = known_V[place] == nodes if len(known_V) else np.zeros(len(nodes), bool)
        component = component_V[place[is_known]]
        new = np.unique(component[label_C[component] == CLASSES])
        label_C[new] = self.num_classes + self.num_own + np.arange(len(new))
        self.num_own += len(new)
        labels[is_known] = label_C[component]
        is_alone = ~is_known & ~self._is_class(nodes)
        labels[is_alone] = [self._label_alone(node) for node in nodes[is_alone].tolist()]
        return labels

    def label_of(self, node: int) -> int:
        """The same of one node."""
        return int(self.label(np.array([node]))[0])

    def listed(self, depth: int, tokens: np.ndarray, base: int) -> dict[int, int]:
        """Labels of the teacher's tokens at a depth, where they are not the base."""
        labels = self.label(self.teacher(depth, tokens))
        differs = labels != base
        return dict(zip(tokens[differs].tolist(), labels[differs].tolist(), strict=True))

    def _is_class(self, nodes: np.ndarray) -> np.ndarray:
        return (nodes >= DROPPED) & (nodes < self._first)

    def _label_alone(self, node: int) -> int:
        if node not in self._alone:
            self._alone[node] = self.num_classes + self.num_own
            self.num_own += 1
        return self._alone[node]

    @cached_property
    def _components(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(nodes that were joined, sorted, the component of each, the label of each component, or CLASSES).

        Components that hold a class have its label; where there are two, the second is merged with the first.
        """
        pairs = np.concatenate([np.zeros((2, 0), np.int64), *self._joined], axis=1)
        nodes, place = np.unique(pairs, return_inverse=True)
        one, other = place.reshape(pairs.shape)
        graph = coo_array((np.ones(len(one), bool), (one, other)), shape=(len(nodes), len(nodes)))
        count, component_V = connected_components(graph, directed=False)
        label_C = np.full(count, CLASSES, np.int64)
        classes = np.flatnonzero(self._is_class(nodes))
        held, first = np.unique(component_V[classes], return_index=True)
        label_C[held] = nodes[classes[first]]
        others = np.delete(classes, first)
        of_others = label_C[component_V[others]]
        self.merged = list(zip(nodes[others].tolist(), of_others.tolist(), strict=True))
        return nodes, component_V, label_C


@dataclass(frozen=True)
class Exit:
    """Where some spellings leave a path: at one depth of it. entry: places among the spellings. token: what they go on
    with there. int64.
    """

    depth: int
    entry: np.ndarray
    token: np.ndarray


def exits(readings: Readings, entry: np.ndarray, skipped: int, path: Sequence[int], depth: int) -> Iterator[Exit]:
    """Of spellings whose tokens behind the first `skipped` ones stand at a depth of the path; one that ends along it
    leaves nowhere.
    """
    place, end = readings.offsets[entry] + skipped, readings.offsets[entry + 1]
    while True:
        goes_on = place < end
        entry, place, end = entry[goes_on], place[goes_on], end[goes_on]
        if not len(entry):
            return
        token = readings.ids[place]
        leaves = token != path[depth] if depth < len(path) else np.ones(len(entry), bool)
        yield Exit(depth, entry[leaves], token[leaves])
        entry, place, end, depth = entry[~leaves], place[~leaves] + 1, end[~leaves], depth + 1
