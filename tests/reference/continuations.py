"""Candidates off the sampled path, in float64: every continuation is read in a forward of its own.

Written from docs/continuations.md: for each side the candidates are events "the next tokens begin with this path"; a
path's mass is its probability less that of the paths directly beyond it, and a token's mass, before it joins its
bucket, is its probability less that of the paths that begin with it. Plain probabilities; gradients are torch's own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tests.reference.dense import membership
from tests.reference.simct import is_one_shared_token
from tests.reference.vocabulary import Candidate, Side, Unit, partition, shared_candidates

Tokens = tuple[int, ...]


@dataclass
class Reader:
    """One model with its vocabulary. next_logits: ids of a whole context → logits of the next token, float64 [K]."""

    side: Side
    prompt: list[int]
    next_logits: Callable[[list[int]], Tensor]
    encode: Callable[[str], list[int]]
    _seen: dict[Tokens, Tensor] = field(default_factory=dict)

    def next_probs(self, context: Sequence[int]) -> Tensor:
        """Probabilities of the token that follows some response tokens."""
        key = tuple(context)
        if key not in self._seen:
            self._seen[key] = self.next_logits([*self.prompt, *context]).softmax(-1)
        return self._seen[key]

    def path_prob(self, context: Sequence[int], path: Tokens) -> Tensor:
        probs = [self.next_probs([*context, *path[:i]])[path[i]] for i in range(len(path))]
        return torch.stack(probs).prod()


@dataclass(frozen=True)
class Choice:
    student_k: int
    teacher_k: int
    min_probability: float


def unshared_likeliest(own: Reader, other: Reader, context: Sequence[int], k: int, least: float) -> list[int]:
    """The k likeliest ids whose bytes are text that the other side does not hold."""
    probs, theirs = own.next_probs(context).tolist(), other.side.ids_by_bytes()
    ids = [
        i
        for i, token in enumerate(own.side.tokens)
        if token is not None and i not in own.side.stop_ids and token not in theirs
    ]
    ranked = sorted(ids, key=lambda i: -probs[i])[:k]
    return [i for i in ranked if probs[i] >= least]


def path_candidates(
    student: Reader, teacher: Reader, unit: Unit, contexts: tuple[list[int], list[int]], choice: Choice
) -> list[tuple[Tokens, Tokens]]:
    """(student's tokens, teacher's tokens) of the unit, when it is no shared token, and of each continuation."""
    shared = shared_candidates(student.side, teacher.side)
    found = [] if is_one_shared_token(unit, shared) else [(unit.student_ids, unit.teacher_ids)]
    for i in unshared_likeliest(student, teacher, contexts[0], choice.student_k, choice.min_probability):
        if (text := student.side.tokens[i]) != unit.text:
            assert text is not None
            found.append(((i,), tuple(teacher.encode(text.decode()))))
    for i in unshared_likeliest(teacher, student, contexts[1], choice.teacher_k, choice.min_probability):
        if (text := teacher.side.tokens[i]) != unit.text:
            assert text is not None
            found.append((tuple(student.encode(text.decode())), (i,)))
    return found


def candidate_masses(reader: Reader, context: list[int], paths: list[Tokens], shared: tuple[Candidate, ...]) -> Tensor:
    """[V + number of paths]: the probability of each bucket and of each path, as disjoint events."""
    prob = {path: reader.path_prob(context, path) for path in paths}

    def begins(short: Tokens, long: Tokens) -> bool:
        return len(short) < len(long) and long[: len(short)] == short

    def directly_beyond(path: Tokens) -> list[Tokens]:
        beyond = [other for other in paths if begins(path, other)]
        return [other for other in beyond if not any(begins(middle, other) for middle in beyond)]

    left = [prob[path] - sum(prob[other] for other in directly_beyond(path)) for path in paths]
    first = list(reader.next_probs(context))
    for path in paths:
        if not any(begins(other, path) for other in paths):
            first[path[0]] = first[path[0]] - prob[path]
    matrix = membership(reader.side, shared, len(first), marginal=True)
    return torch.cat([torch.stack(first) @ matrix, torch.stack(left) if left else matrix.new_empty(0)])


def continuation_losses(
    student: Reader, teacher: Reader, student_ids: list[int], teacher_ids: list[int], choice: Choice
) -> list[Tensor]:
    """Reverse KL of each unit of one response."""
    shared = shared_candidates(student.side, teacher.side)
    losses = []
    for unit in partition(student.side, teacher.side, student_ids, teacher_ids):
        contexts = student_ids[: unit.student_start], teacher_ids[: unit.teacher_start]
        paths = path_candidates(student, teacher, unit, contexts, choice)
        q = candidate_masses(student, contexts[0], [path for path, _ in paths], shared)
        p = candidate_masses(teacher, contexts[1], [path for _, path in paths], shared).detach()
        q, p = q / q.sum(), p / p.sum()
        kept = q > 0
        losses.append((q[kept] * (q[kept] / p[kept]).log()).sum())
    return losses
