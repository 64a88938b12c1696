"""Packing: every index once, within the budget, longest first."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from simct_pl.scoring.microbatch import pack_by_length


@given(lengths=st.lists(st.integers(1, 50), max_size=30), max_tokens=st.integers(1, 200))
def test_groups_hold_every_index_once_and_fit(lengths: list[int], max_tokens: int) -> None:
    groups = pack_by_length(lengths, max_tokens)
    assert sorted(index for group in groups for index in group) == list(range(len(lengths)))
    for group in groups:
        assert len(group) == 1 or max(lengths[index] for index in group) * len(group) <= max_tokens
    longest = [max(lengths[index] for index in group) for group in groups]
    assert longest == sorted(longest, reverse=True)
