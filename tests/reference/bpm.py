"""Byte-prefix marginalisation (arXiv 2607.22334) in float64, one teacher token and one path at a time.

Every path of the teacher that leaves the realised one is a leaf with its bytes and its probability; a leaf counts for a
student token, or for nothing. Written from the description in simct_pl/losses/bpm.py without a line of it.
"""

from __future__ import annotations

from itertools import accumulate

import torch
from torch import Tensor

from tests.reference.objectives import UnitReference
from tests.reference.scenes import Scene
from tests.reference.vocabulary import Side, Unit

NOTHING = "nothing"
Target = dict[int | str, Tensor]


def longest(side: Side, text: bytes) -> int | str:
    """The longest token of a side that begins a text."""
    for length in range(len(text), 0, -1):
        if text[:length] in side.ids_by_bytes():
            return side.ids_by_bytes()[text[:length]]
    return NOTHING


def meaning(scene: Scene, token_id: int) -> int | str:
    """What a teacher token stands for where both models begin."""
    if token_id in scene.teacher.stop_ids:
        return scene.student.stop_ids[0]
    token = scene.teacher.tokens[token_id] if token_id < len(scene.teacher.tokens) else None
    return longest(scene.student, token) if token else NOTHING


def target_of(scene: Scene, unit: Unit, place: int, teacher_kV: Tensor) -> Target:
    """The teacher's mass at the student token that begins so many bytes into the unit."""
    pieces = [scene.teacher.tokens[token_id] or b"" for token_id in unit.teacher_ids]
    ends = list(accumulate(map(len, pieces)))
    k = next((k for k, end in enumerate(ends) if end > place), 0)
    start = ends[k] - len(pieces[k])
    written, room = unit.text[start:place], ends[k] - place
    target: Target = {}

    def count(name: int | str, mass: Tensor) -> None:
        target[name] = target.get(name, torch.zeros((), dtype=torch.float64)) + mass

    begins = [
        i
        for i in range(teacher_kV.shape[1])
        if not written or (_text(scene, i) and _text(scene, i).startswith(written))
    ]
    total = teacher_kV[k, begins].sum()
    for token_id in begins:
        mass = teacher_kV[k, token_id] / total
        if token_id == unit.teacher_ids[k]:
            continue
        if written:
            count(longest(scene.student, _text(scene, token_id)[len(written) :][:room]), mass)
        else:
            count(meaning(scene, token_id), mass)
    realised = teacher_kV[k, unit.teacher_ids[k]] / total
    here = longest(scene.student, unit.text[place : ends[k]]) if unit.text else scene.student.stop_ids[0]
    along = realised
    for j in range(k + 1, len(pieces)):
        for token_id in range(teacher_kV.shape[1]):
            if token_id != unit.teacher_ids[j]:
                said = unit.text[place : ends[j - 1]] + _text(scene, token_id)
                count(_reaching(scene, unit, place, ends[k], ends[j], said, here), along * teacher_kV[j, token_id])
        along = along * teacher_kV[j, unit.teacher_ids[j]]
    count(_reaching(scene, unit, place, ends[k], ends[-1] if pieces else 0, unit.text[place:], here), along)
    return target


def _text(scene: Scene, token_id: int) -> bytes:
    side = scene.teacher
    return (side.tokens[token_id] or b"") if token_id < len(side.tokens) else b""


def _reaching(scene: Scene, unit: Unit, place: int, end: int, reach: int, said: bytes, here: int | str) -> int | str:
    """The longest student token of the realised text that ends behind the teacher token, no further than the path was
    realised or is being left, and begins what was said; else what stands for the realised token.
    """
    for stop in range(reach, end, -1):
        token = unit.text[place:stop]
        if token in scene.student.ids_by_bytes() and said.startswith(token):
            return scene.student.ids_by_bytes()[token]
    return here


def bpm(beta: float, skip_blank: bool) -> UnitReference:
    """JSD of every student row with its target; what no teacher token can stand for is one more outcome."""

    def reference(scene: Scene, unit: Unit, student_kV: Tensor, teacher_kV: Tensor) -> Tensor | None:
        total, graded, place = torch.zeros((), dtype=torch.float64), 0, 0
        for row, token_id in zip(student_kV, unit.student_ids, strict=True):
            token = scene.student.tokens[token_id] or b""
            if not (skip_blank and token and set(token) <= set(b" \t")):
                total = total + _divergence(scene, row, target_of(scene, unit, place, teacher_kV), beta)
                graded += 1
            place += len(token)
        return total if graded else None

    return reference


def _divergence(scene: Scene, row: Tensor, target: Target, beta: float) -> Tensor:
    stops = list(scene.student.stop_ids)
    named = [name for name in target if isinstance(name, int)]
    student = [row[stops].sum() if name == stops[0] else row[name] for name in named]
    others = [i for i in range(len(row)) if i not in named and not (i in stops and stops[0] in named)]
    p = torch.stack([*student, row[others].sum()])
    nothing = target.get(NOTHING, torch.zeros((), dtype=torch.float64))
    q = torch.stack([*(target[name] for name in named), nothing])
    middle = beta * q + (1 - beta) * p
    parts = [(one[one > 0] * (one[one > 0] / middle[one > 0]).log()).sum() for one in (q, p)]
    return beta * parts[0] + (1 - beta) * parts[1]
