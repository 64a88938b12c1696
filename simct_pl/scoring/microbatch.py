"""Cutting a batch into micro-batches: similar lengths together, so that little is padding."""

from __future__ import annotations

from collections.abc import Sequence


def pack_by_length(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Group indices so that each group, padded to its longest member, has at most max_tokens tokens.

    Longest first, so that the largest group comes first and memory trouble shows at once. A sequence that alone exceeds
    max_tokens gets a group of its own.
    """
    groups: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if groups and lengths[groups[-1][0]] * (len(groups[-1]) + 1) <= max_tokens:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups
