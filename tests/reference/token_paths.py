"""One question a student token, by brute force: every token of both vocabularies is read on in full at every position.

Part of the slow reference: float64 loops over dictionaries, written from the rule (docs/methods.md) and without a line
of simct_pl. Both tokenizers are greedy, their tokens are text, and what follows a token does not change its cut, so
that each token has one reading.

What neither model would write decides nothing: a student token that the teacher reads into a token which the student's
cuts rule out, and a teacher token which the teacher itself would not write at its place, stay where the vocabularies
alone put them.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import torch
from torch import Tensor

from tests.reference.vocabulary import Side, greedy_ids

Node = Hashable
DROPPED = "dropped"


class Components:
    """Union and find over anything hashable."""

    def __init__(self) -> None:
        self.parent: dict[Node, Node] = {}

    def find(self, node: Node) -> Node:
        while self.parent.setdefault(node, node) != node:
            node = self.parent[node]
        return node

    def join(self, one: Node, other: Node) -> None:
        self.parent[self.find(one)] = self.find(other)


def text_tokens(side: Side) -> dict[int, bytes]:
    return {k: token for k, token in enumerate(side.tokens) if token and k not in side.stop_ids}


def cut(side: Side, data: bytes) -> list[int] | None:
    """Greedy ids, or None where the vocabulary cannot spell the bytes."""
    known = {byte for token in side.ids_by_bytes() for byte in token}
    return greedy_ids(side, data) if set(data) <= known else None


@dataclass
class Classes:
    """Names of the vocabularies' classes by id, and the student tokens that are linked with several teacher tokens."""

    student: list[Node]
    teacher: list[Node]
    tied: set[int]


def classes(student: Side, teacher: Side) -> Classes:
    parts, links = Components(), set()
    for v, token in text_tokens(student).items():
        links |= {(v, ids[0]) for ids in [cut(teacher, token)] if ids}
        links |= {(v, w) for w, other in text_tokens(teacher).items() if other == token}
    for w, token in text_tokens(teacher).items():
        links |= {(ids[0], w) for ids in [cut(student, token)] if ids}
    for v, w in links:
        parts.join(("s", v), ("t", w))
    linked = {("s", v) for v, _ in links} | {("t", w) for _, w in links}

    def name(side: Side, letter: str, k: int) -> Node:
        if k in side.stop_ids:
            return "stop"
        return parts.find((letter, k)) if (letter, k) in linked else "rest"

    tied = {v for v, _ in links if len({w for u, w in links if u == v}) > 1}
    names = (
        [name(side, letter, k) for k in range(len(side.tokens))] for side, letter in ((student, "s"), (teacher, "t"))
    )
    return Classes(*names, tied)


@dataclass
class Position:
    """A student token: own, from byte start to byte end; the teacher's path from T0, each token's end."""

    own: int
    past: bytes
    cuts: list[int]
    start: int
    end: int
    begin: int
    path: list[int]
    ends: list[int]
    is_cut: bool
    parts: Components = field(default_factory=Components)


def positions(
    student: Side, teacher: Side, student_ids: list[int], teacher_ids: list[int]
) -> list[tuple[int, Position]]:
    """(first row of the path, position) of each student token; a stop counts as one byte."""
    sizes = [
        [1 if k in side.stop_ids else len(side.tokens[k] or b"") for k in ids]
        for side, ids in ((student, student_ids), (teacher, teacher_ids))
    ]
    ends_S, ends_T = (list(accumulate(size)) for size in sizes)
    starts_T = [0, *ends_T[:-1]]
    text = b"".join(student.tokens[k] or b"" for k in student_ids)
    found = []
    for i, own in enumerate(student_ids):
        start, end = ends_S[i] - sizes[0][i], ends_S[i]
        first = max((k for k, begin in enumerate(starts_T) if begin < start), default=0)
        last = next((k for k in range(first, len(teacher_ids)) if ends_T[k] > end), len(teacher_ids) - 1)
        position = Position(
            own,
            text[:start],
            ends_S[:i],
            start,
            end,
            starts_T[first],
            teacher_ids[first : last + 1],
            ends_T[first : last + 1],
            ends_T[last] <= end,
        )
        found.append((first, position))
    return found


def split(side: Side, data: bytes, cuts: Sequence[int], at: int) -> list[int] | None:
    """The tokens of some bytes from byte `at` on, if they are cut there and at all of `cuts`."""
    ids = cut(side, data)
    if ids is None:
        return None
    ends = list(accumulate(len(side.tokens[k] or b"") for k in ids))
    if not set(cuts) | {at} <= {0, *ends}:
        return None
    return ids[([0, *ends]).index(at) :]


def token_loss(
    student: Side, teacher: Side, names: Classes, here: Position, p_K: Tensor, rows_DK: Sequence[Tensor], floor: float
) -> Tensor:
    """Reverse KL over the categories of one position. p_K: the student's row; rows_DK: the teacher's along the path."""
    student_nodes, atoms = link(student, teacher, names, here)
    q_S: dict[Node, Tensor] = {}
    q_T: dict[Node, Tensor] = {}
    dropped = here.parts.find(DROPPED)
    for v, node in student_nodes.items():
        root = here.parts.find(node)
        if root != dropped:
            q_S[root] = q_S.get(root, torch.zeros(())) + p_K[v]
    reached = torch.ones((), dtype=torch.float64)
    for depth, (row_K, on) in enumerate(zip(rows_DK, here.path, strict=True)):
        for w in range(len(row_K)):
            root = here.parts.find(atoms.get((depth, w), DROPPED))
            if w != on and root != dropped:
                q_T[root] = q_T.get(root, torch.zeros(())) + reached * row_K[w]
        reached = reached * row_K[on]
    root = here.parts.find(student_nodes[here.own])
    q_T[root] = q_T.get(root, torch.zeros(())) + reached
    everything = sorted(q_S.keys() | q_T.keys(), key=repr)
    zero = torch.zeros((), dtype=torch.float64)
    sides = [torch.stack([q.get(root, zero) for root in everything]) for q in (q_S, q_T)]
    one, other = (side / side.sum() for side in sides)
    other = (other + floor) / (other + floor).sum()
    return (one * (one.clamp_min(1e-300).log() - other.log())).sum()


def link(
    student: Side, teacher: Side, names: Classes, here: Position
) -> tuple[dict[int, Node], dict[tuple[int, int], Node]]:
    """Join what is one category; returns each student id's node, and the node of each (depth, teacher id)."""
    inside = here.begin < here.start < here.ends[0]
    crossing = [here.start - here.begin, here.past[here.begin :]]
    part = crossing[1]
    students: dict[int, Node] = {v: ("c", name) for v, name in enumerate(names.student)}
    reaching = _reaching(student, teacher, here, part) if here.begin < here.start else {}
    main = None if inside else int(here.begin < here.start)
    whole = teacher.ids_by_bytes().get(bytes(part)) if inside else None
    if inside:
        students = dict.fromkeys(students, ("base",) if whole is not None else DROPPED)
        reaching.setdefault(here.path[0], here.own)
    fronts = {
        d: here.past[: here.begin] + b"".join(teacher.tokens[k] or b"" for k in here.path[:d])
        for d in range(len(here.path) + 1)
    }
    begun = {here.own, *reaching.values()} if inside else set()
    if inside:
        begun |= {s for d in range(1, len(here.path)) if (s := _first(student, here, fronts[d])) is not None}
        students |= {v: ("s", v) for v in begun}
    exits: list[tuple[int, tuple[int, int]]] = []
    moved: dict[int, int] = {}
    for v, token in text_tokens(student).items():
        ids = split(teacher, here.past + token, [], here.begin)
        whole_reading = cut(teacher, here.past + token)
        if whole_reading is None:
            continue
        if ids is None:
            if v != here.own:
                students[v] = DROPPED
            continue
        depth = main if main is not None and ids[:main] == here.path[:main] else 0
        if inside and ids[0] not in reaching:
            if ids[0] == whole and v in begun:
                here.parts.join(("s", v), ("base",))
            continue
        if not inside and depth < (main or 0):
            if ids[0] in reaching and v != here.own:
                moved[v] = reaching[ids[0]]
            continue
        if not inside and ids[depth] != here.path[depth]:
            continue
        if not inside and len(here.path) == depth + 1 and not here.is_cut:
            continue
        students[v] = ("s", v)
        if not inside and v in names.tied:
            here.parts.join(("s", v), ("c", names.student[v]))
        exits.append((v, _leave(here, ids)))
    for v, place in exits:
        if place[1] >= 0:
            here.parts.join(("s", v), ("at", *place))
        elif place[0] >= len(here.path):
            here.parts.join(("s", v), students[here.own])
    kept = dict(students)
    students |= {v: kept[behind] for v, behind in moved.items()}
    return students, _atoms(student, teacher, names, here, kept, reaching, fronts, main, whole)


def _leave(here: Position, ids: list[int]) -> tuple[int, int]:
    """(depth, token) at which a reading leaves the path; token -1 where it ends on it, or goes past its end."""
    for depth, token in enumerate(ids):
        if depth == len(here.path):
            return depth, -1
        if token != here.path[depth] or (depth == len(here.path) - 1 and not here.is_cut):
            return depth, token
    return (len(here.path), -1) if len(ids) > len(here.path) else (0, -1)


def _reaching(student: Side, teacher: Side, here: Position, part: bytes) -> dict[int, int]:
    """Teacher tokens from T0 that go past the position and keep the student's cuts → the student token there."""
    found = {}
    for w, token in text_tokens(teacher).items():
        if token.startswith(part) and len(token) > len(part):
            ids = split(student, here.past[: here.begin] + token, here.cuts, here.start)
            if ids:
                found[w] = ids[0]
    return found


def _first(student: Side, here: Position, front: bytes) -> int | None:
    """What the student begins with at the position where the text ends early; own where it does not."""
    if len(front) >= here.end:
        return here.own
    ids = cut(student, front[here.start :])
    return ids[0] if ids else None


def _atoms(student, teacher, names, here, students, reaching, fronts, main, whole):  # type: ignore[no-untyped-def]
    atoms: dict[tuple[int, int], Node] = {}
    for depth in range(len(here.path)):
        if depth == 0 and main != 0:  # from T0
            for w, behind in reaching.items():
                atoms[0, w] = ("at", 0, w)
                if w != here.path[0] or len(here.path) == 1:
                    here.parts.join(("at", 0, w), students[behind])
            if whole is not None:
                atoms[0, whole] = ("base",)
            continue
        begins = None if depth == main else _first(student, here, fronts[depth])
        for w in range(len(teacher.tokens)):
            token = text_tokens(teacher).get(w)
            ids = cut(teacher, fronts[depth] + token) if token else None
            written = (
                ids is not None
                and ids[-1] == w
                and split(teacher, fronts[depth] + token, [], len(fronts[depth])) == [w]
            )
            read = split(student, fronts[depth] + token, here.cuts, here.start) if written else None
            if depth == main:
                atoms[depth, w] = DROPPED if written and not read else ("c", names.teacher[w])
                continue
            atoms[depth, w] = ("at", depth, w)
            here.parts.join(("at", depth, w), students[read[0] if read else begins])
    if not here.is_cut:
        last = len(here.path) - 1
        node = atoms.get((last, here.path[last]), DROPPED)
        if here.parts.find(node) != here.parts.find(DROPPED):
            here.parts.join(node, students[here.own])
    return atoms


def response_loss(
    student: Side,
    teacher: Side,
    student_ids: list[int],
    teacher_ids: list[int],
    student_SK: Tensor,
    teacher_TK: Tensor,
    floor: float,
) -> Tensor:
    """Sum over the student's tokens. Logits in float64."""
    names = classes(student, teacher)
    p_SK, p_TK = student_SK.softmax(-1), teacher_TK.softmax(-1)
    loss = torch.zeros((), dtype=torch.float64)
    for i, (first, here) in enumerate(positions(student, teacher, student_ids, teacher_ids)):
        rows = p_TK[first : first + len(here.path)]
        loss = loss + token_loss(student, teacher, names, here, p_SK[i], list(rows), floor)
    return loss
