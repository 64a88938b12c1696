"""The categories of one student token that are not the classes of the vocabularies: what its neighbours change.

In: the student's and the teacher's tokens around a position, as ids. Out: Categories, labels for a few tokens. A label
below VocabLinks.num_labels is a class; the others count from there and are the position's own. Three questions, each
kept by its answer's key, since texts repeat themselves:

    behind   both models cut at the position: how the student's tokens go along the teacher's path, and leave it
    before   the same place: what would merge with the token before it, in the teacher's eyes and in the student's
    inside   the position lies inside a teacher token
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from simct_pl.losses.token_paths.shift import Shift
from simct_pl.losses.token_paths.vocab_links import DROPPED as DROPPED

CLASSES = -2  # every id has the label of its class

Node = Hashable


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

    A node is an int, the label of a class or DROPPED, or anything else hashable. num_own: labels from num_classes on
    that are taken.
    """

    def __init__(self, num_classes: int, num_own: int = 0) -> None:
        self.num_classes, self.num_own = num_classes, num_own
        self._parent: dict[Node, Node] = {DROPPED: DROPPED}
        self._labels: dict[Node, int] = {}
        self.merged: list[tuple[int, int]] = []

    def find(self, node: Node) -> Node:
        self._parent.setdefault(node, node)
        while (parent := self._parent[node]) != node:
            self._parent[node] = node = self._parent[parent]
        return node

    def join(self, one: Node, other: Node) -> None:
        self._parent[self.find(one)] = self.find(other)

    def label(self, node: Node) -> int:
        """After the last join."""
        if not self._labels:
            self._name()
        root = self.find(node)
        if root not in self._labels and isinstance(root, int):
            self._labels[root] = root
        elif root not in self._labels:
            self._labels[root] = self.num_classes + self.num_own
            self.num_own += 1
        return self._labels[root]

    def _name(self) -> None:
        """Components that hold a class have its label; where there are two, the second is merged with the first."""
        for node in sorted(node for node in self._parent if isinstance(node, int)):
            root = self.find(node)
            if root in self._labels:
                self.merged.append((node, self._labels[root]))
            else:
                self._labels[root] = node


def exits(links: Links, node: Node, rest: Sequence[int], inner: Sequence[int], depth: int) -> tuple[int, int] | None:
    """Link a student token, whose spelling behind `depth` path tokens is `rest`, with where it leaves the path."""
    for token in rest:
        if depth == len(inner) or token != inner[depth]:
            links.join(node, ("at", depth, token))
            return depth, token
        depth += 1
    return None


def listed(links: Links, depth: int, tokens: Iterable[int], base: int) -> dict[int, int]:
    """Labels of the teacher's tokens at a depth, where they are not the base."""
    labels = {token: links.label(("at", depth, token)) for token in tokens}
    return {token: label for token, label in labels.items() if label != base}
