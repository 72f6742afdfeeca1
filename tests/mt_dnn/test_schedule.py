import pytest
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


@given(st.integers(1, 500), st.floats(0, 0.99), st.sampled_from(["linear", "linear_legacy"]))
def test_stays_in_the_unit_interval(total, warmup, schedule):
    values = [learning_rate_multiplier(step, total, warmup, schedule) for step in range(total)]
    assert all(0.0 <= value <= 1.0 for value in values)
    peak = values.index(max(values))
    assert values[: peak + 1] == sorted(values[: peak + 1])
    assert values[peak:] == sorted(values[peak:], reverse=True)


def test_unknown_schedule_is_named():
    with pytest.raises(ValueError, match="cosine"):
        learning_rate_multiplier(1, 2, 0.0, "cosine")
