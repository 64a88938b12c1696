"""A draw: the same rows in any order of arrival, without repetition, evenly."""

from __future__ import annotations

import random

from simct_pl.data.draw import Draw


def drawn(digests: list[str], count: int | None, seed: str = "0") -> list[str]:
    draw: Draw[str] = Draw(count, seed)
    for digest in digests:
        if draw.wants(digest):
            draw.add(digest, digest)
    return draw.rows()


def test_the_order_of_the_stream_does_not_matter() -> None:
    digests = [f"{i:032x}" for i in range(500)]
    first = drawn(digests, 40)
    assert len(first) == 40
    for order in range(3):
        shuffled = digests[:]
        random.Random(order).shuffle(shuffled)
        assert drawn(shuffled, 40) == first
    assert drawn(digests, 40, seed="1") != first
    assert first == drawn(digests, 80)[:40]  # a larger draw only adds


def test_each_row_comes_once_and_repetitions_are_counted() -> None:
    draw: Draw[int] = Draw(None, "0")
    for i, digest in enumerate(["a", "b", "a", "c", "b", "a"]):
        if draw.wants(digest):
            draw.add(digest, i)
    assert sorted(draw.rows()) == [0, 1, 3]
    assert draw.num_duplicates == 3


def test_what_left_the_draw_does_not_come_back() -> None:
    digests = [f"{i:032x}" for i in range(50)]
    assert drawn(digests * 3, 10) == drawn(digests, 10)


def test_every_row_is_as_likely() -> None:
    digests = [f"{i:032x}" for i in range(20)]
    counts = dict.fromkeys(digests, 0)
    for seed in range(400):
        for digest in drawn(digests, 5, seed=str(seed)):
            counts[digest] += 1
    assert all(60 <= count <= 145 for count in counts.values())  # 100 expected, standard deviation 9


def test_nothing_is_drawn_when_nothing_is_asked_for() -> None:
    assert drawn(["a", "b"], 0) == []
