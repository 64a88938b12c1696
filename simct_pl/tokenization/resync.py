"""Where two byte strings agree, when they should be equal and are not.

In: a side's own bytes and the text. Out: the stretches on which they match, in order. Linear time: after a mismatch,
growing windows are searched for the nearest place where a k-gram of both agrees, so one character that a normaliser
rewrote costs just its surroundings and never the rest of the response.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

# (window, gram sizes): how far from a mismatch to look for which common grams. Right beside it three bytes will do,
# for texts in which every second character was rewritten; farther away chance matches are likelier: long grams first.
_SEARCH = ((16, (3,)), (64, (16, 8, 4)), (256, (16, 8, 4)))
_LONGEST_GRAM = 16


class Block(NamedTuple):
    """own[own_start : own_start + length] == text[text_start : text_start + length]."""

    own_start: int
    text_start: int
    length: int


def matching_blocks(own: bytes, text: bytes) -> list[Block]:
    """Maximal stretches on which own and text agree, in order, cut to whole characters around each mismatch."""
    if own == text:
        return [Block(0, 0, len(text))]
    own_N, text_N = np.frombuffer(own, np.uint8), np.frombuffer(text, np.uint8)
    blocks, i, j = [], 0, 0
    while i < len(own) and j < len(text):
        # Take all that agrees from here, then look for the next place where the two agree again.
        length = _common_prefix(own_N[i:], text_N[j:])
        at_end = i + length == len(own) and j + length == len(text)
        # Two characters may begin with the same bytes and differ in the last one: those first bytes have not matched.
        # Only a common end of both needs no step back.
        kept = length if at_end else length - _continuation_bytes_before(text, j + length, length)
        if kept:
            blocks.append(Block(i, j, kept))
        if at_end:
            break
        found = _resynchronise(own, text, i + kept, j + kept)
        if found is None:
            break
        i, j = found
    return blocks


def _common_prefix(a_N: np.ndarray, b_N: np.ndarray) -> int:
    """Length of the common prefix; doubling steps, so that its cost is that of the prefix."""
    done, step, size = 0, 64, min(len(a_N), len(b_N))
    # To compare all that is left at every mismatch would be quadratic in a text with many of them.
    while done < size:
        end = min(done + step, size)
        differs = a_N[done:end] != b_N[done:end]
        first = int(differs.argmax())
        if differs[first]:
            return done + first
        done, step = end, 2 * step
    return size


def _continuation_bytes_before(text: bytes, position: int, limit: int) -> int:
    """How many bytes to step back from a mismatch to the start of the character it lies in."""
    back = 0
    while back < min(3, limit) and position - back < len(text) and text[position - back] & 0xC0 == 0x80:
        back += 1
    return back


def _resynchronise(own: bytes, text: bytes, i: int, j: int) -> tuple[int, int] | None:
    """The nearest later pair of positions from which own and text agree again, or None.

    (i, j) itself is no answer: the characters that start there differ.
    """
    for window, sizes in _search_plan(max(len(own) - i, len(text) - j)):
        for size in sizes:
            if (found := _nearest_gram(own, text, i, j, window, size)) is not None:
                return found
    return _common_tail(own, text, i, j)


def _search_plan(remaining: int) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Windows that grow to all that remains. Doubling keeps the cost in proportion to what is skipped."""
    yield from _SEARCH
    window = _SEARCH[-1][0]
    while window < remaining:
        window *= 2
        yield window, (_LONGEST_GRAM,)


def _nearest_gram(own: bytes, text: bytes, i: int, j: int, window: int, size: int) -> tuple[int, int] | None:
    """The pair of character starts within a window, with equal grams, that skips the fewest bytes."""
    # Grams of the text by where they first stand, at starts of characters only (0b10xxxxxx goes on with one).
    first_at: dict[bytes, int] = {}
    for position in range(j, min(j + window, len(text) - size + 1)):
        if text[position] & 0xC0 != 0x80:
            first_at.setdefault(text[position : position + size], position)
    # What a pair skips is the sum of both steps. Once the step on this side alone is as long as the best pair, no later
    # position can win.
    best, found = 2 * window, None
    for position in range(i, min(i + window, len(own) - size + 1)):
        if position - i >= best:
            break
        match = first_at.get(own[position : position + size])
        skipped = best if match is None else position - i + match - j
        if match is not None and 0 < skipped < best:
            best, found = skipped, (position, match)
    return found


def _common_tail(own: bytes, text: bytes, i: int, j: int) -> tuple[int, int] | None:
    """The common suffix, for endings too short to hold a gram."""
    length, limit = 0, min(len(own) - i, len(text) - j, _LONGEST_GRAM)
    while length < limit and own[-length - 1] == text[-length - 1]:
        length += 1
    # Not from within a character: shorten the suffix to where one starts.
    while length and text[len(text) - length] & 0xC0 == 0x80:
        length -= 1
    return (len(own) - length, len(text) - length) if length else None
