"""The noise's distribution, at sample sizes that would show an error of about one in a thousand.

All draws are fixed by their seeds, so these tests cannot fail by chance; the bounds are 5 standard errors.
"""

import numpy as np
import pytest
from scipy import stats

from tests.module.draws import draw
from tests.reference import noise as reference

N = 1 << 22
PATH = "layer.0.output.dense.weight"


@pytest.fixture(scope="module")
def z():
    return draw(11, 1, PATH, N).astype(np.float64)


@pytest.fixture(scope="module")
def bits():
    return reference.mask_bits(11, 1, PATH, N)


def standard_error_of_correlation(n):
    return 1.0 / np.sqrt(n)


def correlation(a, b):
    """As np.corrcoef computes it, without its copies of millions of entries."""
    a, b = a - a.mean(), b - b.mean()
    return a @ b / np.sqrt((a @ a) * (b @ b))


def test_moments(z):
    # Of N(0, 1): mean 0, variance 1, third moment 0, fourth 3; variances of these estimates: 1, 2, 15, 96 over n.
    square = z * z
    powers = {1: z, 2: square, 3: square * z, 4: square * square, 6: square * square * square}
    for power, expected, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96), (6, 15, 10395 - 225)):
        assert abs(powers[power].mean() - expected) < 5 * np.sqrt(variance / z.size), power


@pytest.mark.parametrize("quarter", range(4))
def test_each_quarter_is_normal(z, quarter):
    part = z.reshape(-1, 4, 256)[:, quarter].ravel()
    assert stats.kstest(part, "norm").pvalue > 1e-3
    # Equal shares of 512 equally likely bins; the tails are bins of their own.
    counts = np.bincount((stats.norm.cdf(part) * 512).astype(int).clip(0, 511), minlength=512)
    assert stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize("tail", [3.0, 4.0, 4.75])
def test_tails(z, tail):
    expected = 2 * stats.norm.sf(tail) * z.size
    assert abs((np.abs(z) > tail).sum() - expected) < 5 * np.sqrt(expected)


@pytest.mark.parametrize("lag", [1, 2, 3, 7, 8, 64, 255, 256, 512, 768, 1024, 2048, 65536])
def test_entries_are_independent(z, lag):
    a, b = z[:-lag], z[lag:]
    bound = 5 * standard_error_of_correlation(a.size)
    for f in (lambda x: x, np.abs, np.square):  # squares: an entry shares its radius with the one 256 further
        assert abs(correlation(f(a), f(b))) < bound


@pytest.mark.parametrize(
    "other",
    [
        (11, 2, PATH),
        (11, 3, PATH),
        (12, 1, PATH),
        (11 + (1 << 32), 1, PATH),
        (11, 1, "layer.1.output.dense.weight"),
        (11, 1, "layer.0.output.dense.bias"),
    ],
)
def test_steps_seeds_and_tensors_are_independent(z, other):
    y = draw(*other, N).astype(np.float64)
    bound = 5 * standard_error_of_correlation(N)
    for a, b in ((z, y), (np.square(z), np.square(y)), (z[1:], y[:-1]), (z[:-1], y[1:])):
        assert abs(correlation(a, b)) < bound


@pytest.mark.parametrize("threshold", [41, 1229, 2048, 4055])
def test_mask_rate(z, bits, threshold):
    p = threshold / 4096
    kept = draw(11, 1, PATH, N, threshold) != 0
    np.testing.assert_array_equal(kept, (bits < threshold) & (z != 0))  # z is 0 once in 2**24 pairs: u = 1
    assert abs(kept.mean() - p) < 5 * np.sqrt(p * (1 - p) / N)
    for quarter in range(4):
        part = kept.reshape(-1, 4, 256)[:, quarter]
        assert abs(part.mean() - p) < 5 * np.sqrt(p * (1 - p) / part.size)


def test_mask_is_independent_of_the_normals_and_of_itself(z, bits):
    bound = 5 * standard_error_of_correlation(N - 1024)
    kept = (bits < 2048).astype(np.float64)
    for values in (z, np.abs(z), np.square(z)):
        for shift in (0, 256, -256, 512, 1):
            assert abs(correlation(np.roll(kept, shift)[1024:-1024], values[1024:-1024])) < bound
    for lag in (1, 256, 512, 1024):
        assert abs(correlation(kept[:-lag], kept[lag:])) < bound
    # The perturbed entries alone are normal too.
    assert stats.kstest(z[bits < 2048], "norm").pvalue > 1e-3


def test_every_mask_level_is_equally_likely(bits):
    assert stats.chisquare(np.bincount(bits, minlength=4096)).pvalue > 1e-3


def test_neighbouring_rows_of_a_matrix_are_uncorrelated():
    rows = draw(3, 5, PATH, 1024 * 384).reshape(1024, 384).astype(np.float64)
    correlation = np.corrcoef(rows)
    np.fill_diagonal(correlation, 0.0)
    # 523,776 pairs: the largest of that many standard normals is below 5.5.
    assert np.abs(correlation).max() < 6 * standard_error_of_correlation(384)
