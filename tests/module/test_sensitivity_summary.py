"""The numbers for how concentrated sensitivities are, against values worked out by hand."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from module.sensitivity_summary import FULL_RANGE, PAPER_RANGE, SensitivitySummary, bin_edges, entropy, gini, summarise

POSITIVE = st.lists(st.floats(1e-12, 1.0), min_size=1, max_size=30)


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ([3.0, 3.0, 3.0, 3.0], 0.0),
        ([0.0, 0.0, 0.0, 1.0], 0.75),  # (n - 1) / n: one entry holds everything
        ([1.0, 2.0, 3.0], 2.0 / 9.0),
        ([7.0], 0.0),
    ],
)
def test_gini_of_known_vectors(entries, expected):
    assert gini(np.array(entries, np.float32)) == pytest.approx(expected, abs=1e-12)


def test_gini_without_a_positive_entry_is_nan():
    assert math.isnan(gini(np.zeros(3)))


@given(POSITIVE, st.floats(1e-3, 1e3))
@settings(max_examples=50, deadline=None)
def test_gini_is_half_the_mean_difference_over_the_mean_at_any_scale(entries, scale):
    x = np.sort(np.array(entries))
    expected = np.abs(x[:, None] - x[None, :]).mean() / (2.0 * x.mean())
    assert gini(x) == pytest.approx(expected, abs=1e-9)
    assert gini(scale * x) == pytest.approx(gini(x), abs=1e-9)


@pytest.mark.parametrize(
    ("counts", "bits"),
    [([5] * 8, 3.0), ([5, 0, 5, 0], 1.0), ([0, 9, 0], 0.0), ([1, 1, 2], 1.5)],
)
def test_entropy_of_known_histograms(counts, bits):
    assert entropy(counts) == pytest.approx(bits, abs=1e-12)


def test_entropy_of_nothing_is_nan():
    assert math.isnan(entropy([0, 0]))


def test_the_summary_of_a_few_entries_by_hand():
    tensors = {
        "layer.0.output.dense.weight": torch.tensor([[1e-8, 1e-7], [1e-6, 1e-5]]),
        "layer.1.output.dense.bias": torch.tensor([0.0, 1e-4]),
    }
    values = np.array([1e-8, 1e-7, 1e-6, 1e-5, 0.0, 1e-4])
    s = summarise(tensors, beta=0.75)
    assert (s.beta, s.n) == (0.75, 6)
    assert s.mean == pytest.approx(values.mean())
    assert s.std == pytest.approx(values.std())
    assert s.median == pytest.approx(0.5 * (1e-7 + 1e-6))
    # float32's 1e-5 is a little less than 1e-5, and so still in the range.
    assert (s.below_range, s.above_range) == (pytest.approx(2 / 6), pytest.approx(1 / 6))
    assert s.std_in_range == pytest.approx(np.std([1e-7, 1e-6, 1e-5]))
    assert s.std_log10 == pytest.approx(np.std([-8, -7, -6, -5, -4]), rel=1e-5)
    assert s.top_share == pytest.approx(1e-4 / values.sum())
    assert s.entropy == pytest.approx(math.log2(6)), "six entries in six bins"
    assert [(t.path, t.n, t.mean) for t in s.tensors] == [
        ("layer.0.output.dense.weight", 4, pytest.approx(values[:4].mean())),
        ("layer.1.output.dense.bias", 2, pytest.approx(5e-5)),
    ]
    assert SensitivitySummary.from_json(json.loads(json.dumps(dataclasses.asdict(s)))) == s


def test_histograms_hold_every_entry_between_the_stated_edges():
    x = torch.tensor(np.random.default_rng(0).lognormal(np.log(1e-6), 2.0, 5000), dtype=torch.float32)
    s = summarise({"layer.0.a.weight": x}, beta=0.5)
    for counts, span in ((s.paper_counts, PAPER_RANGE), (s.full_counts, FULL_RANGE)):
        edges = bin_edges(*span)
        assert len(counts) == span[2] + 2
        assert sum(counts) == 5000
        inside, _ = np.histogram(x.numpy().astype(np.float64), edges)
        assert list(inside) == pytest.approx(list(counts[1:-1]), abs=1)  # abs: numpy's last bin has its edge in it
    assert s.below_range == s.paper_counts[0] / 5000
    assert s.above_range == s.paper_counts[-1] / 5000


def test_no_entries_are_refused():
    with pytest.raises(ValueError, match="no sensitivities to describe"):
        summarise({}, beta=0.75)
