"""Dropout's decisions, straight from the definition in module/dropout.py."""

import numpy as np

from tests.reference.philox import philox4x32_10


def kept(seed, position, n, p):
    """Which of n entries a mask keeps that starts at block ``position``."""
    j = np.arange(n, dtype=np.uint64)
    block, entry = (j >> np.uint64(11)) + np.uint64(position), j & np.uint64(2047)
    c0 = (block & np.uint64(0xFFFFFF)) << np.uint64(8) | entry & np.uint64(255)
    counter = (c0, block >> np.uint64(24), np.zeros_like(j), np.zeros_like(j))
    words = np.stack(philox4x32_10(counter, (seed & 0xFFFFFFFF, seed >> 32)))  # (4, n)
    word = words[(entry >> np.uint64(9)).astype(int), j.astype(int)]
    upper = (entry >> np.uint64(8)) & np.uint64(1) == 1
    return np.where(upper, word >> np.uint64(16), word & np.uint64(0xFFFF)) < round((1 - p) * 65536)
