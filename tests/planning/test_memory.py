"""Memory items of a step by hand, on two models whose sizes are easy numbers."""

from __future__ import annotations

from dataclasses import replace

import torch

from simct_pl.planning.measure import ModelSize, WorkBytes
from simct_pl.planning.memory import (
    MemoryItem,
    Moment,
    PairBytes,
    Part,
    chunk_bytes,
    distillation_items,
    peak_bytes,
)
from simct_pl.planning.step import StepShape

STUDENT = ModelSize(parameters=1000, blocks=(200, 300, 250), head=100, width=5, vocab=20)
TEACHER = ModelSize(parameters=4000, blocks=(1600, 1600), head=300, width=10, vocab=30)
PAIR = PairBytes(STUDENT, TEACHER, WorkBytes(kept=700, most=900), reading=50, cache=11)
STEP = StepShape(num_prompts=16, num_samples=2, num_gpus=8)  # 4 responses on each


def held(step: StepShape, pair: PairBytes = PAIR) -> dict[Part, float]:
    return {item.part: item.bytes for item in distillation_items(pair, step)}


def test_sharding_divides_what_it_shards_and_gathers_two_blocks() -> None:
    sharded, whole = held(STEP), held(replace(STEP, student="replicated", buckets=True))
    state = {Part.WEIGHTS: 4000, Part.GRADIENTS: 4000, Part.MOMENTS: 8000}
    assert {part: whole[part] for part in state} == state
    assert {part: 8 * sharded[part] for part in state} == state
    assert whole[Part.BUCKETS] == 4000
    assert sharded[Part.GATHERED] == 2 * (250 + 300 + 250)  # outside, the two largest
    assert sharded[Part.EXCHANGED] == 300 * (2 + 4)
    assert held(replace(STEP, reshard=False))[Part.GATHERED] == 2 * 1000
    assert whole.keys().isdisjoint({Part.GATHERED, Part.EXCHANGED})
    shared = {Part.KEPT, Part.AT_WORK, Part.TEACHER_WEIGHTS, Part.TEACHER_AT_WORK, Part.HEAD_GRADIENT, Part.LOSS}
    assert {part: whole[part] for part in shared} == {part: sharded[part] for part in shared}
    copies = held(replace(STEP, num_replicas=2))
    assert copies[Part.WEIGHTS] == 4000 / 4


def test_a_sharded_teacher_keeps_what_is_outside_its_blocks_whole() -> None:
    assert held(STEP)[Part.TEACHER_WEIGHTS] == 2 * 4000
    sharded = held(replace(STEP, teacher="sharded"))
    assert sharded[Part.TEACHER_WEIGHTS] == 2 * (800 + 3200 / 8)
    assert sharded[Part.TEACHER_AT_WORK] == 50 + 2 * 3200


def test_where_the_engine_lives() -> None:
    copy = held(STEP)
    assert (copy[Part.ENGINE_WEIGHTS], copy[Part.ENGINE_CACHE]) == (2 * 1000, 4 * 11)
    itself = held(replace(STEP, engine="student"))
    assert Part.ENGINE_WEIGHTS not in itself
    assert itself[Part.ENGINE_CACHE] == copy[Part.ENGINE_CACHE]
    assert held(replace(STEP, engine="server")).keys().isdisjoint({Part.ENGINE_WEIGHTS, Part.ENGINE_CACHE})
    reserved = held(replace(STEP, reserved_bytes=123.0))
    assert reserved[Part.ENGINE_RESERVED] == 123
    assert reserved.keys().isdisjoint({Part.ENGINE_WEIGHTS, Part.ENGINE_CACHE})


def test_the_head_s_gradient_is_added_up_in_fp32() -> None:
    assert held(STEP)[Part.HEAD_GRADIENT] == 100 * (2 + 4)
    assert held(replace(STEP, param_dtype=torch.float32))[Part.HEAD_GRADIENT] == 100 * 4
    assert held(replace(STEP, param_dtype=torch.float32, autocast=True))[Part.HEAD_GRADIENT] == 100 * (2 + 4)


def test_logits_are_flat_in_length() -> None:
    longer = replace(STEP, response_tokens=8192, teacher_response_tokens=8064, micro_batch_tokens=1)
    assert chunk_bytes(PAIR, STEP) == chunk_bytes(PAIR, longer)
    # 1,024 rows of either vocabulary, and all temporaries of one strip, which here is the whole chunk.
    assert chunk_bytes(PAIR, STEP) == 1024 * (20 + 30) * 2 + 7.5 * 1024 * 30 * 4


def test_of_what_takes_turns_the_most_counts() -> None:
    items = [
        MemoryItem(Part.WEIGHTS, 100),
        MemoryItem(Part.ENGINE_CACHE, 40, Moment.GENERATING),
        MemoryItem(Part.KEPT, 20, Moment.TRAINING),
        MemoryItem(Part.AT_WORK, 5, Moment.BACKWARD),
        MemoryItem(Part.TEACHER_AT_WORK, 15, Moment.TEACHER),
        MemoryItem(Part.LOSS, 10, Moment.LOSS),
    ]
    assert peak_bytes(items) == 100 + 40
    assert peak_bytes([replace(items[1], bytes=30), *items[:1], *items[2:]]) == 100 + 20 + 15


def test_what_could_not_be_measured_is_left_out_and_the_rest_stays() -> None:
    found = held(STEP, PairBytes(STUDENT, TEACHER, None, None, None, ("it reads token by token",)))
    assert found.keys().isdisjoint({Part.KEPT, Part.AT_WORK, Part.TEACHER_AT_WORK, Part.ENGINE_CACHE})
    assert found[Part.WEIGHTS] == held(STEP)[Part.WEIGHTS]
