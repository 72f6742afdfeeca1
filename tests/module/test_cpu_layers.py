"""The exponential and the softmax of the CPU's kernels."""

import numpy as np
import pytest
from numba import njit

from module.kernels.cpu_layers import _exp


@njit(error_model="numpy")
def _all(x, out):
    for j in range(len(x)):
        out[j] = _exp(x[j])


def exp(x):
    x = np.ascontiguousarray(x, np.float32)
    out = np.empty_like(x)
    _all(x, out)
    return out


def test_exponential_is_within_two_units_in_the_last_place():
    """All exponents of x, every 509th mantissa, and all neighbours of -87 and of the ends of the reduced range."""
    whole = np.arange(0x80000000, 0xC2AE0000, 509, np.uint32).view(np.float32)
    edges = (np.arange(-500, 1).astype(np.float64)[:, None] * (np.log(2) / 4) + np.linspace(-1e-5, 1e-5, 101)).ravel()
    x = np.concatenate([whole, edges.astype(np.float32), np.float32([0.0, -0.0, -87.0])])
    x = x[(x <= 0) & (x >= -87)]
    assert x.min() == -87
    exact = np.exp(x.astype(np.float64))
    got = exp(x)
    error = np.abs(got - exact) / np.spacing(exact.astype(np.float32)).astype(np.float64)
    assert error.max() <= 2
    assert (got >= 0).all()
    assert exp([0.0])[0] == 1


def test_exponential_below_its_range_is_zero():
    below = np.float32([np.nextafter(np.float32(-87), np.float32(-88)), -88, -1e4, -1e30, -3e38, -np.inf])
    assert (exp(below) == 0).all()
    rest = np.arange(0xC2AE0001, 0xFF800000, 100_003, np.uint32).view(np.float32)
    assert (exp(rest) == 0).all()


@pytest.mark.parametrize("bits", [0x7FC00000, 0xFFC00000, 0x7FC00001, 0xFFFFFFFF, 0x7F800001, 0x7FC00123, 0xFF812345])
def test_exponential_of_nan_is_nan(bits):
    """Whatever its payload."""
    assert np.isnan(exp(np.array([bits], np.uint32).view(np.float32))).all()
