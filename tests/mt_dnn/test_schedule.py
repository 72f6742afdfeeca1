import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mt_dnn.schedule import learning_rate_multiplier


def test_linear_rises_to_one_and_falls_to_zero():
    values = [learning_rate_multiplier(step, 100, 0.1, "linear") for step in range(100)]
    assert values[0] == 0.0
    assert values[5] == pytest.approx(0.5)
    assert values[10] == 1.0
    assert values[55] == pytest.approx(0.5)
    assert values[99] == pytest.approx(1 / 90)


def test_legacy_jumps_down_at_the_end_of_warmup():
    values = [learning_rate_multiplier(step, 100, 0.1, "linear_legacy") for step in range(100)]
    assert values[9] == pytest.approx(0.9)
    assert values[10] == pytest.approx(0.9)
    assert values[11] == pytest.approx(0.89)
    assert values[99] == pytest.approx(0.01)


def test_without_warmup_the_first_update_is_at_the_peak():
    assert learning_rate_multiplier(0, 10, 0.0, "linear") == 1.0


@given(st.integers(1, 500), st.floats(0, 0.99), st.sampled_from(["linear", "cosine", "constant", "linear_legacy"]))
def test_stays_in_the_unit_interval(total, warmup, schedule):
    values = [learning_rate_multiplier(step, total, warmup, schedule) for step in range(total)]
    assert all(0.0 <= value <= 1.0 for value in values)
    peak = values.index(max(values))
    assert values[: peak + 1] == sorted(values[: peak + 1])
    assert values[peak:] == sorted(values[peak:], reverse=True)


def test_unknown_schedule_is_named():
    with pytest.raises(ValueError, match="legal: linear, cosine, constant, linear_legacy"):
        learning_rate_multiplier(1, 2, 0.0, "polynomial")


def test_cosine_falls_to_zero_in_half_a_wave():
    values = [learning_rate_multiplier(step, 100, 0.2, "cosine") for step in range(100)]
    assert values[:21] == pytest.approx([step / 20 for step in range(21)])
    assert values[40] == pytest.approx(0.5 + 0.5 / 2**0.5)  # a quarter of the way down
    assert values[60] == pytest.approx(0.5)
    assert values[99] == pytest.approx(0.5 * (math.pi / 80) ** 2 / 2, rel=1e-3)


def test_constant_stays_at_the_peak_after_warmup():
    assert [learning_rate_multiplier(step, 10, 0.2, "constant") for step in range(10)] == [0.0, 0.5] + [1.0] * 8
    assert {learning_rate_multiplier(step, 10, 0.0, "constant") for step in range(10)} == {1.0}


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [("linear", "linear"), ("cosine", "cosine"), ("constant", "constant_with_warmup")],
)
def test_schedules_are_those_of_transformers(ours, theirs):
    from transformers import get_scheduler

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = get_scheduler(theirs, optimizer, num_warmup_steps=5, num_training_steps=50)
    expected = []
    for _ in range(50):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    found = [learning_rate_multiplier(step, 50, 0.1, ours) for step in range(50)]
    assert found == pytest.approx(expected, rel=1e-12, abs=1e-15)
