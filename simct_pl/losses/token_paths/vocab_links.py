"""Which tokens of two vocabularies begin the same texts: classes of first tokens, made once a pair.

In: how each side reads the other's tokens. Out: VocabLinks. A student token is linked with the teacher token that its
spelling begins with, and the other way round; what is linked is one class. At a place where both models have cut, and
off the teacher's realised path, these classes are what the two models' next tokens have in common.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from simct_pl.losses.token_paths.rolling import HashSet, RollingHash
from simct_pl.tokenization.bytes import as_text
from simct_pl.tokenization.pair import TokenizerPair
from simct_pl.tokenization.readings import KINDS, PairReadings, Reader, Readings, kind

REST, STOP = 0, 1
DROPPED = -1  # no category: the token contradicts what is cut already
SMALL = 2000  # ids; a pair below is linked in less than a second, and cut-down ones come by the dozen


@dataclass(frozen=True, eq=False)
class LinksReport:
    """How coarse the classes are.

    num_classes: of text. student_coarse, teacher_coarse: share of each side's text tokens that are in a class with
        another of their own side. largest: tokens of both sides in the largest class. num_rest: ids of both sides that
        no token of the other side shares a text with, control tokens included.
    """

    num_classes: int
    student_coarse: float
    teacher_coarse: float
    largest: int
    num_rest: int


@dataclass(frozen=True, eq=False)
class VocabLinks:
    """Classes of first tokens.

    student_label_K, teacher_label_K: int64, id → class: REST for control tokens and what only one side has, STOP for
        the stops, then classes of text.
    is_tied_K: bool, student tokens that are linked with more than one teacher token.
    same_tokenizer: both sides are one tokenizer; every id is a class of its own then.
    """

    student: Reader
    teacher: Reader
    readings: PairReadings
    student_label_K: np.ndarray
    teacher_label_K: np.ndarray
    is_tied_K: np.ndarray
    num_labels: int
    same_tokenizer: bool = False

    @classmethod
    def of_pair(cls, pair: TokenizerPair) -> VocabLinks:
        """From the disk if this pair was linked before; one to four minutes for large vocabularies otherwise."""
        sides = Reader.of(pair.student), Reader.of(pair.teacher)
        worth_keeping = max(len(side.table) for side in sides) >= SMALL
        return cls.build(*sides, same_tokenizer=pair.same_tokenizer, cached=worth_keeping)

    @classmethod
    def build(
        cls, student: Reader, teacher: Reader, *, same_tokenizer: bool = False, cached: bool = True
    ) -> VocabLinks:
        if same_tokenizer:
            return cls._identity(student, teacher)
        readings = PairReadings.build(student, teacher, cached=cached)
        edges = _edges(student, teacher, readings)
        labels, num_labels = _classes(student, teacher, edges)
        students = len(student.table)
        neighbours_K = np.bincount(np.unique(edges, axis=0)[:, 0], minlength=students)
        return cls(student, teacher, readings, labels[:students], labels[students:], neighbours_K > 1, num_labels)

    @classmethod
    def _identity(cls, student: Reader, teacher: Reader) -> VocabLinks:
        empty = Readings(*(np.zeros(size, np.int64) for size in (0, 1, 0)))
        label_K, other_K = (np.arange(len(side.table)) for side in (student, teacher))
        tied_K = np.zeros(len(label_K), bool)
        num_labels = max(len(label_K), len(other_K))
        readings = PairReadings(empty, empty)
        return cls(student, teacher, readings, label_K, other_K, tied_K, num_labels, same_tokenizer=True)

    @cached_property
    def student_keep_MK(self) -> np.ndarray:
        """bool [2 ** len(KINDS), K]: which ids do not begin with a character of the kinds in a bit mask."""
        return _keep(self.student)

    @cached_property
    def teacher_keep_MK(self) -> np.ndarray:
        """The same of the teacher."""
        return _keep(self.teacher)

    @cached_property
    def student_bytes(self) -> SortedTokens:
        return SortedTokens(self.student)

    @cached_property
    def teacher_bytes(self) -> SortedTokens:
        return SortedTokens(self.teacher)

    def report(self) -> LinksReport:
        shares, sizes = [], np.zeros(self.num_labels, np.int64)
        for reader, label_K in ((self.student, self.student_label_K), (self.teacher, self.teacher_label_K)):
            own_K = label_K[reader.text_ids]
            counts = np.bincount(own_K, minlength=self.num_labels)
            sizes += counts
            shares.append(float((counts[own_K] > 1).mean()))
        sizes[: STOP + 1] = 0
        num_rest = sum(int((label_K == REST).sum()) for label_K in (self.student_label_K, self.teacher_label_K))
        return LinksReport(int((sizes > 0).sum()), shares[0], shares[1], int(sizes.max()), num_rest)


class SortedTokens:
    """A side's text tokens by their bytes."""

    def __init__(self, reader: Reader) -> None:
        self.reader, tokens = reader, reader.table.tokens
        by_bytes = sorted(reader.text_ids, key=tokens.__getitem__)
        self.ids, self.tokens = by_bytes, [tokens[k] for k in by_bytes]
        self.id_of = reader.table.ids_by_bytes(without=reader.stop_ids)
        self.ids_S = np.array(by_bytes, np.int64)

    def count(self, prefix: bytes) -> int:
        """How many tokens begin with some bytes."""
        start, end = self.span(prefix)
        return end - start

    def span(self, prefix: bytes) -> tuple[int, int]:
        """Where the tokens that begin with some bytes lie in ids and tokens."""
        start = bisect_left(self.tokens, prefix)
        return start, bisect_left(self.tokens, prefix + b"\xff" * 128, start)

    def longer_than(self, prefix: bytes) -> tuple[int, int]:
        """The same of those that are longer."""
        return bisect_right(self.tokens, prefix), self.span(prefix)[1]

    def beginning_with(self, prefix: bytes) -> list[tuple[int, bytes]]:
        """(id, bytes) of the tokens that begin with some bytes, those bytes themselves first."""
        start, end = self.span(prefix)
        return list(zip(self.ids[start:end], self.tokens[start:end], strict=True))

    @cached_property
    def prefixes(self) -> HashSet:
        """Hashes of the bytes that any token begins with and is longer than."""
        lengths = np.array([len(token) for token in self.tokens], np.int64)
        starts = np.repeat(np.cumsum(lengths) - lengths, np.maximum(lengths - 1, 0))
        within = np.arange(len(starts)) - np.repeat(np.cumsum(np.maximum(lengths - 1, 0)), np.maximum(lengths - 1, 0))
        within += np.repeat(np.maximum(lengths - 1, 0), np.maximum(lengths - 1, 0))
        hashes = RollingHash(np.frombuffer(b"".join(self.tokens), np.uint8))
        return HashSet(hashes.of(starts, starts + within + 1))

    def goes_on(self, prefix: bytes) -> bool:
        """Whether any token begins with some bytes and is longer."""
        start = bisect_right(self.tokens, prefix)
        return start < len(self.tokens) and self.tokens[start].startswith(prefix)

    def longest_prefix(self, data: bytes) -> int | None:
        """The id of the longest token that some bytes begin with."""
        found = (self.id_of.get(data[:length]) for length in range(len(data), 0, -1))
        return next((token for token in found if token is not None), None)


def _keep(reader: Reader) -> np.ndarray:
    bit_K = np.zeros(len(reader.table), np.int64)
    for k in reader.text_ids:
        text = as_text(reader.table.tokens[k])
        if text is not None:
            bit_K[k] = 1 << KINDS.index(kind(text[0]))
    return (np.arange(1 << len(KINDS))[:, None] & bit_K) == 0


def _edges(student: Reader, teacher: Reader, readings: PairReadings) -> np.ndarray:
    """Links between the sides, int64 [edges, 2] of (student id, teacher id)."""
    forward = np.stack([readings.student.source_E, readings.student.first_E], 1)
    backward = np.stack([readings.teacher.first_E, readings.teacher.source_E], 1)
    twins = np.array([*_equal_bytes(student, teacher)], np.int64).reshape(-1, 2)
    edges = np.concatenate([forward, backward, twins])
    parts = [edges]
    for place, own, other in ((0, student, teacher), (1, teacher, student)):
        unlinked = set(own.text_ids) - set(edges[:, place].tolist())
        found = np.array([*_by_prefix(own, other, unlinked)], np.int64).reshape(-1, 2)
        parts.append(found if place == 0 else found[:, ::-1])
    return np.concatenate(parts)


def _equal_bytes(student: Reader, teacher: Reader) -> Iterator[tuple[int, int]]:
    """Tokens of equal bytes, the second ids of either side included (byte fallbacks)."""
    ids_of: dict[bytes, list[int]] = {}
    for k in teacher.text_ids:
        ids_of.setdefault(teacher.table.tokens[k], []).append(k)
    for v in student.text_ids:
        for w in ids_of.get(student.table.tokens[v], ()):
            yield v, w


def _by_prefix(own: Reader, other: Reader, unlinked: set[int]) -> Iterator[tuple[int, int]]:
    """Tokens that are no text, such as the later bytes of a character, with the other side's longest prefix of them."""
    by_bytes = SortedTokens(other)
    for k in sorted(unlinked):
        found = by_bytes.longest_prefix(own.table.tokens[k]) if as_text(own.table.tokens[k]) is None else None
        if found is not None:
            yield k, found


def _classes(student: Reader, teacher: Reader, edges: np.ndarray) -> tuple[np.ndarray, int]:
    """Class of each student id and then of each teacher id, and their number."""
    students, total = len(student.table), len(student.table) + len(teacher.table)
    pairs = edges + np.array([0, students])
    graph = coo_array((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), shape=(total, total))
    _, component = connected_components(graph, directed=False)
    both = np.zeros(component.max(initial=0) + 1, bool)
    both[component[pairs[:, 0]]] = True
    stops = [*student.stop_ids, *(students + k for k in teacher.stop_ids)]
    is_text = np.concatenate([student.table.is_text_V, teacher.table.is_text_V]) & both[component]
    is_text[stops] = False
    names, place = np.unique(component[is_text], return_inverse=True)
    labels = np.full(total, REST, np.int64)
    labels[is_text] = STOP + 1 + place
    if student.stop_ids and teacher.stop_ids:
        labels[stops] = STOP
    return labels, STOP + 1 + len(names)
