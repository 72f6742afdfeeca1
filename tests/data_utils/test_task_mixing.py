"""The order in which the batches of several tasks come."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_utils.batching import batches_over_laps
from data_utils.task_mixing import mixed_tasks

COUNTS = st.lists(st.integers(1, 40), min_size=2, max_size=5)


@given(COUNTS, st.integers(0, 2**62), st.integers(0, 9), st.sampled_from([0, 1]))
def test_every_batch_of_every_task_comes_once(counts, seed, epoch, mix_opt):
    order = mixed_tasks(counts, seed, epoch, mix_opt)
    assert np.bincount(order, minlength=len(counts)).tolist() == counts
    if mix_opt:
        assert (order[-counts[0] :] == 0).all()
        assert not (order[: -counts[0]] == 0).any()


@given(COUNTS, st.integers(0, 2**62), st.sampled_from([0.01, 0.5, 1.0, 2.5, 100.0]), st.sampled_from([0, 1]))
def test_a_ratio_takes_part_of_the_other_tasks(counts, seed, ratio, mix_opt):
    taken = np.bincount(mixed_tasks(counts, seed, 0, mix_opt, ratio), minlength=len(counts))
    assert taken[0] == counts[0]
    assert taken[1:].sum() == min(sum(counts[1:]), int(round(counts[0] * ratio * 100) // 100))
    assert (taken <= counts).all()


@given(COUNTS, st.floats(1.0, 1e6))
def test_a_temperature_keeps_the_sum_and_moves_towards_equal_parts(counts, temperature):
    taken = np.bincount(mixed_tasks(counts, 1, 0, temperature=temperature), minlength=len(counts))
    assert taken.sum() == sum(counts)
    assert taken.min() >= 1
    shares = np.array(counts) ** (1 / temperature)
    exact = sum(counts) * shares / shares.sum()
    if exact.min() >= 1:
        assert (abs(taken - exact) < 1).all()


@given(COUNTS)
def test_temperature_1_is_every_batch_once(counts):
    assert np.bincount(mixed_tasks(counts, 1, 0, temperature=1.0)).tolist() == counts


def test_known_shares():
    # 100^(1/2) : 1 = 10 : 1 of 101 batches: 91.8 and 9.2.
    assert np.bincount(mixed_tasks([100, 1], 1, 0, temperature=2.0)).tolist() == [92, 9]
    assert np.bincount(mixed_tasks([100, 100], 1, 0, ratio=0.29)).tolist() == [100, 29]


def test_orders_follow_from_seed_and_epoch():
    one, again = mixed_tasks([50, 50], 3, 0), mixed_tasks([50, 50], 3, 0)
    assert one.tolist() == again.tolist()
    for seed, epoch in ((3, 1), (4, 0)):
        assert one.tolist() != mixed_tasks([50, 50], seed, epoch).tolist()


@pytest.mark.parametrize(("n_batches", "laps"), [(0, [0]), (2, [0]), (3, [0]), (4, [0, 1]), (8, [0, 1, 2])])
def test_batches_go_on_in_the_next_lap(n_batches, laps):
    asked = []

    def lap(number):
        asked.append(number)
        return [np.array([number, i]) for i in range(3)]

    taken = batches_over_laps(n_batches, lap)
    assert [batch.tolist() for batch in taken] == [[i // 3, i % 3] for i in range(n_batches)]
    assert asked == laps
