"""From the reference's plain values to the project's own: the only place where the two meet."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from simct_pl.tokenization.bytes import TokenBytes
from simct_pl.tokenization.readings import Reader
from simct_pl.tokenization.shared_vocab import SharedVocab
from simct_pl.types import UnitAlignment
from tests.reference.scenes import Scene
from tests.reference.vocabulary import Side, greedy_ids, partition


def shared_vocab_of(student: Side, teacher: Side) -> SharedVocab:
    """The project's shared vocabulary of two reference vocabularies."""
    return SharedVocab.build(table_of(student), table_of(teacher), student.stop_ids, teacher.stop_ids)


def scene_inputs(scene: Scene) -> tuple[UnitAlignment, SharedVocab]:
    """What distillation_loss takes beside the logits."""
    alignment = alignment_of(scene.student, scene.teacher, scene.student_ids, scene.teacher_ids)
    return alignment, shared_vocab_of(scene.student, scene.teacher)


def table_of(side: Side) -> TokenBytes:
    """The project's own table of a reference vocabulary."""
    special = [token_id for token_id, token in enumerate(side.tokens) if token is None]
    return TokenBytes.from_list(list(side.tokens), special_ids=special, fallback_ids=side.fallback_ids)


def reader_of(side: Side) -> Reader:
    """A vocabulary as the greedy tokenizer of its texts; what it cannot spell has no ids."""
    known = {byte for token in side.ids_by_bytes() for byte in token}

    def spell(texts: Sequence[str]) -> list[list[int]]:
        return [greedy_ids(side, text.encode()) if set(text.encode()) <= known else [] for text in texts]

    return Reader(table_of(side), side.stop_ids, spell, "greedy")


def alignment_of(student: Side, teacher: Side, student_ids: list[int], teacher_ids: list[int]) -> UnitAlignment:
    """The project's value for the reference's units."""
    units = partition(student, teacher, student_ids, teacher_ids)
    rows = [
        (
            unit.student_start,
            unit.student_start + len(unit.student_ids),
            unit.teacher_start,
            unit.teacher_start + len(unit.teacher_ids),
            unit.byte_start,
            unit.byte_start + len(unit.text),
        )
        for unit in units
    ]
    return UnitAlignment(
        units_U6=np.array(rows, dtype=np.int64).reshape(-1, 6),
        student_ids_S=np.array(student_ids, dtype=np.int64),
        teacher_ids_T=np.array(teacher_ids, dtype=np.int64),
        text=b"".join(unit.text for unit in units),
        has_stop=bool(units) and units[-1].is_stop,
        supervised_U=np.ones(len(rows), dtype=bool),
    )
