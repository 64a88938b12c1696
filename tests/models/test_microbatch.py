"""Packing: every index once, within the budget, longest first, the least padding; and back."""

from __future__ import annotations

from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simct_pl.models.microbatch import GROUP_COST, pack_by_length, unpack


@given(lengths=st.lists(st.integers(1, 50), max_size=30), max_tokens=st.integers(1, 200))
def test_groups_hold_every_index_once_and_fit(lengths: list[int], max_tokens: int) -> None:
    groups = pack_by_length(lengths, max_tokens)
    assert sorted(index for group in groups for index in group) == list(range(len(lengths)))
    for group in groups:
        assert len(group) == 1 or max(lengths[index] for index in group) * len(group) <= max_tokens
    longest = [max(lengths[index] for index in group) for group in groups]
    assert longest == sorted(longest, reverse=True)


def cost(lengths: list[int], groups: list[list[int]], max_tokens: int) -> float:
    """Padded tokens, and what the groups themselves cost."""
    padded = sum(max(lengths[index] for index in group) * len(group) for group in groups)
    return padded + GROUP_COST * max_tokens * len(groups)


@given(lengths=st.lists(st.integers(1, 50), min_size=1, max_size=8), max_tokens=st.integers(1, 400))
def test_no_other_cut_is_cheaper(lengths: list[int], max_tokens: int) -> None:
    """Against all ways to cut the sorted sequences."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    best = float("inf")
    for num_cuts in range(len(order)):
        for cuts in combinations(range(1, len(order)), num_cuts):
            groups = [order[start:end] for start, end in pairwise((0, *cuts, len(order)))]
            if all(len(group) == 1 or lengths[group[0]] * len(group) <= max_tokens for group in groups):
                best = min(best, cost(lengths, groups, max_tokens))
    assert cost(lengths, pack_by_length(lengths, max_tokens), max_tokens) == pytest.approx(best)


def test_a_long_response_does_not_pad_the_short_ones() -> None:
    assert pack_by_length([100, 4000, 120, 90], 16_384) == [[1], [2, 0, 3]]


def test_nearly_equal_lengths_stay_together() -> None:
    assert pack_by_length([30, 33, 31, 32], 16_384) == [[1, 3, 2, 0]]


def test_unpacking_restores_the_order() -> None:
    groups = [[2, 0], [1], []]  # the last is that of a rank that has nothing left to read
    assert unpack(groups, [["c", "a"], ["b"], []]) == ["a", "b", "c"]
