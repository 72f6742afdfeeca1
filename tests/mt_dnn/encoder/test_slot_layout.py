"""The rectangles of a packed batch: every token has one slot, and no cheaper division by length exists."""

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mt_dnn.encoder.slot_layout import _GROUP_COST, _SLOT_COST, length_groups, slot_layout

LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=12).map(np.array)


def price(groups):
    """Cost of groups given as arrays of lengths."""
    return sum(len(g) * max(g) * (max(g) + _SLOT_COST) + _GROUP_COST for g in groups)


def cheapest(lengths, max_groups):
    """Every division of the sorted lengths tried."""
    ordered = np.sort(lengths)
    divisions = (
        np.split(ordered, cuts)
        for n in range(min(max_groups, len(ordered)))
        for cuts in combinations(range(1, len(ordered)), n)
    )
    return min(price(division) for division in divisions)


@settings(max_examples=60, deadline=None)
@given(LENGTHS, st.integers(1, 4))
def test_no_division_is_cheaper(lengths, max_groups):
    groups = length_groups(lengths, max_groups)
    assert len(groups) <= max_groups
    assert sorted(np.concatenate(groups)) == list(range(len(lengths)))
    assert price([lengths[rows] for rows in groups]) == cheapest(lengths, max_groups)


@settings(max_examples=60, deadline=None)
@given(LENGTHS, st.integers(1, 4))
def test_tokens_and_slots_are_inverse(lengths, max_groups):
    cu_seqlens = np.concatenate([[0], np.cumsum(lengths)])
    layout = slot_layout(cu_seqlens, max_groups)
    tokens = torch.arange(cu_seqlens[-1])
    assert torch.equal(layout.slot_tokens[layout.token_slots], tokens)
    assert len(layout.token_slots.unique()) == len(tokens)
    assert layout.groups[-1].end == len(layout.slot_tokens)
    real = torch.zeros(len(layout.slot_tokens), dtype=torch.bool)
    for group in layout.groups:
        shape = (group.size, group.length)
        slots = real[group.start : group.end].view(shape)
        slots[:] = True if group.key_bias is None else group.key_bias[:, 0, 0] == 0
        example = torch.from_numpy(np.repeat(np.arange(len(lengths)), lengths))
        rows = example[layout.slot_tokens[group.start : group.end]].view(shape)
        assert (rows == rows[:, :1]).all()  # one example to a row, its padding included
    assert torch.equal(real.nonzero()[:, 0], layout.token_slots.sort().values)
    first_slots = torch.cat([torch.arange(group.start, group.end, group.length) for group in layout.groups])
    assert torch.equal(first_slots[layout.rows], layout.token_slots[cu_seqlens[:-1]])


def test_equal_lengths_need_no_move():
    layout = slot_layout(np.array([0, 5, 10, 15]), 4)
    assert layout.is_identity
    assert torch.equal(layout.token_slots, torch.arange(15))
    assert not slot_layout(np.array([0, 5, 9]), 1).is_identity


@pytest.mark.parametrize("max_groups", [1, 4])
def test_a_long_example_does_not_stretch_the_short_ones(max_groups):
    lengths = np.array([10] * 31 + [200])
    slots = len(slot_layout(np.concatenate([[0], np.cumsum(lengths)]), max_groups).slot_tokens)
    assert slots == (32 * 200 if max_groups == 1 else 31 * 10 + 200)
