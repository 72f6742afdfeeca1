"""Philox4x32-10 (Salmon et al., SC 2011), in the paper's words: rounds of two multiplications and a permutation."""

import numpy as np

LOW = np.uint64(0xFFFFFFFF)


def philox4x32_10(counter, key):
    """Four arrays of counter words and two key words (integers below 2**32) to four arrays of uint64 words."""
    r0, l0, r1, l1 = (np.asarray(c, np.uint64) for c in counter)
    k0, k1 = (np.uint64(k) for k in key)
    for _ in range(10):
        p0 = r0 * np.uint64(0xD2511F53)
        p1 = r1 * np.uint64(0xCD9E8D57)
        high0, low0 = p0 >> np.uint64(32), p0 & LOW
        high1, low1 = p1 >> np.uint64(32), p1 & LOW
        r0, l0, r1, l1 = high1 ^ l0 ^ k0, low1, high0 ^ l1 ^ k1, low0
        k0 = (k0 + np.uint64(0x9E3779B9)) & LOW
        k1 = (k1 + np.uint64(0xBB67AE85)) & LOW
    return r0, l0, r1, l1
