"""Two vocabularies as plain lists of byte strings, and the minimal units of a text read in both.

Part of the slow reference: dictionaries and loops, written from the definitions (arXiv 2605.07711, section 3) and
without a line of simct_pl. A candidate is named by its bytes; the stop candidate by the word STOP.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

STOP = "stop"
Candidate = bytes | str


@dataclass(frozen=True)
class Side:
    """One model's vocabulary.

    tokens: bytes by id; None for an id without bytes (a control token, an unused row).
    stop_ids: every id that ends a turn, the usual one first.
    fallback_ids: ids that spell one byte as `<0x41>` does, beside the ordinary token of that byte.
    """

    tokens: tuple[bytes | None, ...]
    stop_ids: tuple[int, ...] = ()
    fallback_ids: tuple[int, ...] = ()

    @cache  # noqa: B019 - frozen, small, and asked for once a candidate
    def ids_by_bytes(self) -> dict[bytes, int]:
        """The id that stands for each byte string: an ordinary token before a fallback, then the lowest id."""
        chosen: dict[bytes, int] = {}
        for wants_fallback in (False, True):
            for token_id, token in enumerate(self.tokens):
                if token and token_id not in self.stop_ids and (token_id in self.fallback_ids) is wants_fallback:
                    chosen.setdefault(token, token_id)
        return chosen


@dataclass(frozen=True)
class Unit:
    """A minimal aligned unit: what both sides call by these ids. The stop unit has no bytes."""

    text: bytes
    student_start: int
    student_ids: tuple[int, ...]
    teacher_start: int
    teacher_ids: tuple[int, ...]
    byte_start: int

    @property
    def is_stop(self) -> bool:
        return not self.text


@cache
def shared_candidates(student: Side, teacher: Side) -> tuple[Candidate, ...]:
    """Byte strings that both vocabularies hold as one token, in order; then stop with stop."""
    shared = sorted(set(student.ids_by_bytes()) & set(teacher.ids_by_bytes()))
    return (*shared, STOP) if student.stop_ids and teacher.stop_ids else tuple(shared)


def candidate_ids(side: Side, candidate: Candidate) -> list[int]:
    """The ids whose probability is the candidate's: one token, or every stop id."""
    return list(side.stop_ids) if isinstance(candidate, str) else [side.ids_by_bytes()[candidate]]


@cache
def bucket_of(side: Side, token_id: int, shared: tuple[Candidate, ...]) -> Candidate | None:
    """The longest shared token that is a byte prefix of this id; None when there is none."""
    if token_id in side.stop_ids:
        return STOP if STOP in shared else None
    token = side.tokens[token_id]
    if not token:
        return None
    for length in range(len(token), 0, -1):
        if token[:length] in shared:
            return token[:length]
    return None


def greedy_ids(side: Side, text: bytes) -> list[int]:
    """Longest-match tokenization of a text."""
    by_bytes, ids, start = side.ids_by_bytes(), [], 0
    while start < len(text):
        end = next(end for end in range(len(text), start, -1) if text[start:end] in by_bytes)
        ids.append(by_bytes[text[start:end]])
        start = end
    return ids


def partition(student: Side, teacher: Side, student_ids: list[int], teacher_ids: list[int]) -> list[Unit]:
    """Minimal units: connected components of "these two bytes lie in one token of either side".

    A stop at the end of both is a unit of its own. Both id lists must spell the same text.
    """
    stopped = bool(student_ids and teacher_ids) and (
        student_ids[-1] in student.stop_ids and teacher_ids[-1] in teacher.stop_ids
    )
    bodies = [ids[:-1] if stopped else ids for ids in (student_ids, teacher_ids)]
    owners = [_byte_owners(side, ids) for side, ids in zip((student, teacher), bodies, strict=True)]
    assert len(owners[0]) == len(owners[1]), "the two tokenizations spell different texts"
    units = []
    for component in _components(owners):
        ranges = [(owner[component[0]], owner[component[-1]] + 1) for owner in owners]
        (student_start, student_end), (teacher_start, teacher_end) = ranges
        ids = tuple(student_ids[student_start:student_end])
        text = b"".join(student.tokens[token_id] or b"" for token_id in ids)
        aligned = tuple(teacher_ids[teacher_start:teacher_end])
        units.append(Unit(text, student_start, ids, teacher_start, aligned, component[0]))
    if stopped:
        starts = len(student_ids) - 1, len(teacher_ids) - 1
        units.append(Unit(b"", starts[0], (student_ids[-1],), starts[1], (teacher_ids[-1],), len(owners[0])))
    return units


def _byte_owners(side: Side, ids: list[int]) -> list[int]:
    """For each byte of the text, the position of the token that holds it."""
    return [position for position, token_id in enumerate(ids) for _ in side.tokens[token_id] or b""]


def _components(owners: list[list[int]]) -> list[list[int]]:
    """Connected components of the bytes, by flooding from every byte that has not been seen."""
    num_bytes, seen, components = len(owners[0]), set(), []
    for first in range(num_bytes):
        if first in seen:
            continue
        seen.add(first)
        frontier, component = [first], [first]
        while frontier:
            here = frontier.pop()
            for there in range(num_bytes):
                if there not in seen and any(owner[here] == owner[there] for owner in owners):
                    seen.add(there)
                    frontier.append(there)
                    component.append(there)
        components.append(sorted(component))
    return components
