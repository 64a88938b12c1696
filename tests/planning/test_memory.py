"""Memory items of a step by hand: a ledger, and two models whose sizes are easy numbers."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from simct_pl.planning.memory import (
    MemoryItem,
    Moment,
    Part,
    counted_items,
    items_beside,
    peak_bytes,
    rehearsed_items,
)
from simct_pl.planning.step import StepShape
from simct_pl.rehearsal.ledger import Ledger
from simct_pl.rehearsal.models import ModelSize
from simct_pl.rehearsal.training import GRADIENTS, MOMENTS, TEACHER, TRAINED

STUDENT = ModelSize(parameters=1000, blocks=(200, 300, 250))
TEACHER_SIZE = ModelSize(parameters=4000, blocks=(1600, 1600))
SIZES = {"student": STUDENT, "teacher": TEACHER_SIZE}
STEP = StepShape(num_prompts=16, num_samples=2, num_gpus=8)  # 4 responses on each


def held(items: list[MemoryItem]) -> dict[Part, float]:
    return {item.part: item.bytes for item in items}


def ledger() -> Ledger:
    found = Ledger()
    found.at_rest = Counter({TRAINED: 500, GRADIENTS: 500, MOMENTS: 1000, TEACHER: 8000, "a.py:1": 7, "b.py:2": 3})
    found.most_in = {"student_forward": 10_100, "teacher": 10_050, "loss": 10_400, "other": 20_000, "optimizer": 10_010}
    return found


def test_what_is_there_before_is_told_from_what_a_phase_adds() -> None:
    items = rehearsed_items(ledger(), STEP)
    assert [(item.part, item.bytes, item.when) for item in items] == [
        (Part.WEIGHTS, 500, Moment.ALWAYS),
        (Part.GRADIENTS, 500, Moment.TRAINING),
        (Part.MOMENTS, 1000, Moment.ALWAYS),
        (Part.TEACHER_WEIGHTS, 8000, Moment.ALWAYS),
        (Part.TABLES, 10, Moment.ALWAYS),
        (Part.AT_WORK, 90, Moment.FORWARD),
        (Part.AT_WORK, 40, Moment.TEACHER),
        (Part.AT_WORK, 390, Moment.LOSS),
    ]
    assert peak_bytes(items) == 10_400
    offloaded = {item.part for item in rehearsed_items(ledger(), replace(STEP, cpu_offload=True))}
    assert offloaded == {Part.TEACHER_WEIGHTS, Part.TABLES, Part.AT_WORK}


def test_a_teacher_on_a_server_takes_nothing() -> None:
    elsewhere = replace(STEP, teacher="server")
    items = rehearsed_items(ledger(), elsewhere)
    assert Part.TEACHER_WEIGHTS not in held(items)
    assert Moment.TEACHER not in {item.when for item in items}
    assert peak_bytes(items) == 10_400 - 8000
    assert Part.TEACHER_WEIGHTS not in held(counted_items(SIZES, elsewhere))


def test_an_anchor_is_one_more_frozen_student() -> None:
    step = replace(STEP, anchor=True, engine="server")
    assert not items_beside(STUDENT, 0, replace(step, anchor=False))
    assert held(items_beside(STUDENT, 0, step)) == {Part.ANCHOR_WEIGHTS: 2 * 1000}
    sharded = replace(step, teacher="sharded")  # of 750 in blocks each of 8 ranks has an eighth
    assert held(items_beside(STUDENT, 0, sharded)) == {Part.ANCHOR_WEIGHTS: 2 * (250 + 750 / 8)}


def test_of_what_takes_turns_the_most_counts() -> None:
    items = [
        MemoryItem(Part.WEIGHTS, 100),
        MemoryItem(Part.ENGINE_CACHE, 40, Moment.GENERATING),
        MemoryItem(Part.GRADIENTS, 20, Moment.TRAINING),
        MemoryItem(Part.AT_WORK, 5, Moment.BACKWARD),
        MemoryItem(Part.AT_WORK, 15, Moment.TEACHER),
        MemoryItem(Part.AT_WORK, 10, Moment.LOSS),
    ]
    assert peak_bytes(items) == 100 + 40
    assert peak_bytes([replace(items[1], bytes=30), *items[:1], *items[2:]]) == 100 + 20 + 15


def test_without_a_rehearsal_weights_gradients_and_moments_are_counted() -> None:
    whole = held(counted_items(SIZES, replace(STEP, student="replicated")))
    assert whole == {
        Part.WEIGHTS: 4000,
        Part.GRADIENTS: 4000,
        Part.MOMENTS: 8000,
        Part.TEACHER_WEIGHTS: 2 * 4000,
    }
    sharded = held(counted_items(SIZES, replace(STEP, teacher="sharded")))
    assert sharded[Part.MOMENTS] == 1000
    assert sharded[Part.TEACHER_WEIGHTS] == 2 * (800 + 3200 / 8)
    assert held(counted_items(SIZES, replace(STEP, num_replicas=2)))[Part.WEIGHTS] == 4000 / 4
    assert set(held(counted_items(SIZES, replace(STEP, cpu_offload=True)))) == {Part.TEACHER_WEIGHTS}


def test_where_the_engine_lives() -> None:
    assert held(items_beside(STUDENT, 11, STEP)) == {Part.ENGINE_WEIGHTS: 2 * 1000, Part.ENGINE_CACHE: 4 * 11}
    assert held(items_beside(STUDENT, 11, replace(STEP, engine="student"))) == {Part.ENGINE_CACHE: 4 * 11}
    assert items_beside(STUDENT, 0, replace(STEP, engine="server")) == []
    assert held(items_beside(STUDENT, 0, replace(STEP, reserved_bytes=123.0))) == {Part.ENGINE_RESERVED: 123}
    buckets = items_beside(STUDENT, 0, replace(STEP, engine="server", buckets=True))
    assert held(buckets) == {Part.BUCKETS: 4000}
