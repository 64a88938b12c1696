"""The matcher for bytes that should be equal and are not."""

from __future__ import annotations

import random
import time
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simct_pl.tokenization.resync import Block, matching_blocks

PROSE = ("A farmer has 17 sheep; all but 9 run away. How many are left? Let x be the rest: x = 17 - 8. " * 40).encode()


def _check(blocks: list[Block], own: bytes, text: bytes) -> None:
    own_done = text_done = 0
    for own_start, text_start, length in blocks:
        assert own_start >= own_done
        assert text_start >= text_done
        assert own[own_start : own_start + length] == text[text_start : text_start + length]
        own_done, text_done = own_start + length, text_start + length
    assert own_done <= len(own)
    assert text_done <= len(text)


@given(st.binary(max_size=60))
def test_equal_bytes_are_one_block(data: bytes) -> None:
    assert matching_blocks(data, data) == [Block(0, 0, len(data))]


@given(own=st.text("ab é≈", max_size=60), text=st.text("ab é≈", max_size=60))
def test_blocks_are_ordered_and_equal(own: str, text: str) -> None:
    _check(matching_blocks(own.encode(), text.encode()), own.encode(), text.encode())


@given(own=st.binary(max_size=80), text=st.binary(max_size=80))
def test_blocks_of_any_bytes(own: bytes, text: bytes) -> None:
    _check(matching_blocks(own, text), own, text)


@given(position=st.integers(0, len(PROSE)), new=st.text(max_size=12))
def test_one_insertion_costs_nothing_else(position: int, new: str) -> None:
    own = PROSE[:position] + new.encode() + PROSE[position:]
    blocks = matching_blocks(own, PROSE)
    _check(blocks, own, PROSE)
    assert sum(length for _, _, length in blocks) >= len(PROSE) - 8


@given(position=st.integers(0, len(PROSE) - 1))
def test_one_replaced_character_costs_itself(position: int) -> None:
    own = PROSE[:position] + "≈".encode() + PROSE[position + 1 :]
    blocks = matching_blocks(own, PROSE)
    assert sum(length for _, _, length in blocks) >= len(PROSE) - 8


def test_a_text_decomposed_throughout_keeps_its_plain_letters() -> None:
    text = "Tiếng Việt là ngôn ngữ của người Việt và là ngôn ngữ chính thức tại Việt Nam. " * 20
    own = unicodedata.normalize("NFD", text).encode()
    blocks = matching_blocks(own, text.encode())
    _check(blocks, own, text.encode())
    assert sum(length for _, _, length in blocks) > 0.5 * len(text.encode())


def test_blocks_do_not_cut_characters() -> None:
    (block,) = matching_blocks("aé".encode(), "aè".encode())  # the same first byte in é and è
    assert block == Block(0, 0, 1)


@pytest.mark.parametrize("make", ["different", "repetitive", "random"])
def test_time_is_linear(make: str) -> None:
    rng = random.Random(0)
    size = 200_000
    own, text = {
        "different": (b"a" * size, b"b" * size),
        "repetitive": (b"ab" * (size // 2), b"ab" * (size // 2 - 1) + b"ba"),
        "random": (rng.randbytes(size), rng.randbytes(size)),
    }[make]
    start = time.process_time()
    _check(matching_blocks(own, text), own, text)
    assert time.process_time() - start < 10
