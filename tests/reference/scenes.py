"""Random small worlds for the losses: two vocabularies, one text, both tokenizations, random logits."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from torch import Tensor

from tests.reference.vocabulary import Side, Unit, greedy_ids, partition

EMOJI = "😀".encode()
ALPHABET = [bytes([byte]) for byte in b"ab 02" + EMOJI]


@dataclass(frozen=True)
class Scene:
    """One response in two tokenizations. Logits are float64 [tokens, padded vocabulary]."""

    student: Side
    teacher: Side
    student_ids: list[int]
    teacher_ids: list[int]
    student_logits_SV: Tensor
    teacher_logits_TV: Tensor

    @property
    def units(self) -> list[Unit]:
        return partition(self.student, self.teacher, self.student_ids, self.teacher_ids)


def random_side(rng: random.Random, num_merges: int, num_stops: int, private: bytes) -> Side:
    """Bytes of the alphabet, merged pieces of it, tokens that only this side has, duplicates, control tokens."""
    tokens: list[bytes | None] = [None, *ALPHABET]
    while num_merges:
        piece = b"".join(rng.choices(ALPHABET, k=rng.randint(2, 3)))
        if rng.random() < 0.2:
            piece = EMOJI[: rng.randint(2, 4)]
        if piece not in tokens:
            tokens.append(piece)
            num_merges -= 1
    tokens += [private, private + b"a", b"a" + private]
    fallback_ids = (len(tokens), len(tokens) + 1)
    tokens += [b"a", b"0"]  # spelt `<0x61>` and `<0x30>` beside the ordinary tokens
    stop_ids = tuple(range(len(tokens), len(tokens) + num_stops))
    return Side(tuple(tokens + [None] * num_stops), stop_ids, fallback_ids)


def random_scene(seed: int, scale: float = 2.0, num_pieces: int = 9) -> Scene:
    """A scene in which every kind of unit turns up over a few seeds: 1:1, 1:n, n:1, n:m, a cut emoji, a stop."""
    rng = random.Random(seed)
    student = random_side(rng, 10, num_stops=rng.choice([1, 2]), private=b"x")
    teacher = random_side(rng, 8, num_stops=rng.choice([1, 3]), private=b"y")
    merged = [token for side in (student, teacher) for token in side.tokens if token and set(token) <= set(b"ab 02")]
    text = b"".join(rng.choice([*merged, EMOJI, b"202"]) for _ in range(num_pieces))
    stopped = rng.random() < 0.7
    student_ids = greedy_ids(student, text) + ([rng.choice(student.stop_ids)] if stopped else [])
    teacher_ids = greedy_ids(teacher, text) + ([rng.choice(teacher.stop_ids)] if stopped else [])
    generator = torch.Generator().manual_seed(seed)

    def logits(num_rows: int, side: Side, padding: int) -> Tensor:
        shape = num_rows, len(side.tokens) + padding
        return torch.randn(shape, generator=generator, dtype=torch.float64) * scale

    return Scene(
        student,
        teacher,
        student_ids,
        teacher_ids,
        logits(len(student_ids), student, padding=3),
        logits(len(teacher_ids), teacher, padding=0),
    )
