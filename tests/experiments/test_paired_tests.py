import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from experiments.study.statistics.paired_tests import (
    MONTE_CARLO_FLIPS,
    holm,
    mcnemar,
    pooled_mcnemar,
    seeds_needed,
    sign_flip,
    smallest_p,
)

POINTS = st.floats(-100, 100).map(lambda x: round(x, 6))


@settings(max_examples=30, deadline=None)
@given(st.lists(POINTS, min_size=2, max_size=9))
def test_the_sign_flip_test_is_scipys_permutation_test(differences: list[float]) -> None:
    expected = stats.permutation_test(
        (differences,), lambda d, axis: np.mean(d, axis=axis), permutation_type="samples", vectorized=True,
        n_resamples=np.inf, alternative="two-sided",
    )  # fmt: skip
    assert sign_flip(differences).p == pytest.approx(expected.pvalue)


def test_sums_that_are_equal_but_for_rounding_are_ties() -> None:
    # 0.1 + 0.2 - 0.3 is not 0.0 in floating point; exactly, 8 of the 8 flips reach a sum of at least 0.
    assert sign_flip([0.1, 0.2, -0.3]).p == 1.0
    # Accuracies of 277 examples: the sums |±1 ±2 ±3| / 2.77 are at least 4 / 2.77 in 4 of 8 flips.
    assert sign_flip([100 / 277, -200 / 277, -300 / 277]).p == 0.5


@pytest.mark.parametrize("n", [1, 2, 5, 6, 10, 20])
def test_the_smallest_p_is_reached_when_every_seed_gains(n: int) -> None:
    found = sign_flip([1.0 + i / 10 for i in range(n)])
    assert found.exact
    assert found.p == smallest_p(n) == min(1.0, 2 / 2**n)


def test_the_smallest_p_of_random_flips_is_the_observed_ones() -> None:
    found = sign_flip([1.0 + i / 10 for i in range(40)])
    assert not found.exact
    assert found.p == smallest_p(40) == 1 / (MONTE_CARLO_FLIPS + 1)


def test_how_many_seeds_it_takes() -> None:
    assert seeds_needed() == 6
    assert smallest_p(5) == 0.0625
    assert smallest_p(6) == 0.03125
    for comparisons in (1, 2, 8, 16, 100):
        n = seeds_needed(comparisons)
        assert comparisons * smallest_p(n) <= 0.05 < comparisons * smallest_p(n - 1)


def test_many_seeds_are_sampled_with_a_stated_seed() -> None:
    differences = np.random.default_rng(0).normal(0.3, 1.0, size=25).tolist()
    drawn = sign_flip(differences, seed=1)
    assert not drawn.exact
    assert drawn == sign_flip(differences, seed=1)
    assert drawn.p != sign_flip(differences, seed=2).p
    # The exact p of 25 differences by meeting in the middle: all sums of one half against all sums of the other.
    halves = [
        np.array(list(itertools.product([-1, 1], repeat=len(h)))) @ h for h in np.split(np.array(differences), [12])
    ]
    left, right = np.sort(halves[0]), halves[1]
    least = abs(sum(differences)) - 1e-9
    above = len(left) - np.searchsorted(left, least - right, side="left")
    below = np.searchsorted(left, -least - right, side="right")
    exact = (above + below).sum() / 2**25
    assert drawn.p == pytest.approx(exact, abs=4 * math.sqrt(exact / MONTE_CARLO_FLIPS))


def test_a_test_of_nothing_or_of_nan_has_no_p() -> None:
    assert math.isnan(sign_flip([]).p)
    assert math.isnan(sign_flip([1.0, math.nan, 2.0]).p)
    assert sign_flip([0.0, 0.0, 0.0]).p == 1.0


@pytest.mark.parametrize(
    ("only_first", "only_second", "both"), [(0, 0, 5), (3, 0, 9), (7, 2, 0), (12, 30, 100), (8, 8, 1)]
)
def test_mcnemar_is_a_binomial_test(only_first: int, only_second: int, both: int) -> None:
    first = np.array([True] * only_first + [False] * only_second + [True] * both)
    second = np.array([False] * only_first + [True] * only_second + [True] * both)
    found = mcnemar(first, second)
    discordant = only_first + only_second
    expected = stats.binomtest(only_first, discordant, 0.5).pvalue if discordant else 1.0
    assert (found.only_first, found.only_second) == (only_first, only_second)
    assert found.p == pytest.approx(expected)
    assert pooled_mcnemar(first.astype(np.int64) - second) == pytest.approx(expected)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(-4, 4), min_size=1, max_size=12))
def test_the_pooled_test_counts_all_flips_of_the_examples(net: list[int]) -> None:
    sums = [
        abs(sum(s * d for s, d in zip(signs, net, strict=True)))
        for signs in itertools.product([-1, 1], repeat=len(net))
    ]
    expected = np.mean([s >= abs(sum(net)) for s in sums])
    assert pooled_mcnemar(np.array(net)) == pytest.approx(expected)


def test_the_pooled_test_copes_with_a_large_dev_set() -> None:
    net = np.random.default_rng(0).integers(-5, 6, size=40_000)
    z = abs(net.sum()) / math.sqrt((net**2).sum())
    assert pooled_mcnemar(net) == pytest.approx(2 * stats.norm.sf(z), rel=0.02)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_is_bonferroni_closed(p_values: list[float]) -> None:
    # Marcus, Peritz and Gabriel 1976: a hypothesis is rejected if every set that holds it is, here by Bonferroni.
    indices = range(len(p_values))
    for i, corrected in enumerate(holm(p_values)):
        sets = [s for size in range(1, len(p_values) + 1) for s in itertools.combinations(indices, size) if i in s]
        assert corrected == pytest.approx(max(min(1.0, len(s) * min(p_values[j] for j in s)) for s in sets))


def test_holm_keeps_nan_and_counts_it() -> None:
    assert holm([0.01, math.nan, 0.04])[0] == pytest.approx(0.03)
    assert math.isnan(holm([0.01, math.nan, 0.04])[1])
    assert holm([]) == []
