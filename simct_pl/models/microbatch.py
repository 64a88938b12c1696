"""Cutting a batch into micro-batches, similar lengths together so that little is padding; and putting it back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import TypeVar

Item = TypeVar("Item")

# What one more group costs, as a share of the padded tokens that a group may have: a model reads a group of few tokens
# hardly faster than one of twice as many.
GROUP_COST = 1 / 16


def pack_by_length(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Group indices so that each group, padded to its longest member, has at most max_tokens tokens.

    Of all ways to cut the sequences, longest first, into groups, this is the one with the fewest padded tokens,
    GROUP_COST included. The longest come first, so that memory trouble shows at once. A sequence that alone exceeds
    max_tokens gets a group of its own.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    # Backwards over the order: the best cost of the sequences from i on, and where their first group ends.
    costs, ends = [0.0] * (len(order) + 1), [0] * len(order)
    for i in reversed(range(len(order))):
        # The longest comes first, so the group is as wide as it; `most` fit.
        width = lengths[order[i]]
        most = max(max_tokens // max(width, 1), 1)
        costs[i], ends[i] = min(
            (width * (end - i) + GROUP_COST * max_tokens + costs[end], end)
            for end in range(i + 1, min(i + most, len(order)) + 1)
        )
    groups, start = [], 0
    while start < len(order):
        groups.append(order[start : ends[start]])
        start = ends[start]
    return groups


def unpack(groups: Sequence[Sequence[int]], parts: Iterable[Sequence[Item]]) -> list[Item]:
    """The inverse: what was made of each group, in the order of the sequences."""
    items = dict(zip(chain.from_iterable(groups), chain.from_iterable(parts), strict=True))
    return [items[i] for i in range(len(items))]
