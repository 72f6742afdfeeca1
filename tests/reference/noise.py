"""The noise stream as module/noise.py defines it, in float64."""

from hashlib import blake2b

import numpy as np

from tests.reference.philox import LOW, philox4x32_10


def tensor_id(path):
    return int.from_bytes(blake2b(path.encode(), digest_size=8, person=b"pats-tensor").digest(), "little")


def words(seed, step, path, c0):
    identity = tensor_id(path)
    c0 = np.asarray(c0, np.uint64)
    same = [np.full_like(c0, value) for value in (step, identity & 0xFFFFFFFF, identity >> 32)]
    return philox4x32_10((c0, *same), (seed & 0xFFFFFFFF, seed >> 32))


def entry_words(seed, step, path, n):
    """For each entry j: its pair of words (a, b), and whether its quarter is odd."""
    blocks = -(-n // 1024)
    lanes = np.arange(blocks * 256, dtype=np.uint64)  # block << 8 | lane; the four quarters of a block share its words
    w0, w1, w2, w3 = (found.reshape(blocks, 256) for found in words(seed, step, path, lanes))
    a, b = (np.stack(quarters, axis=1).ravel()[:n] for quarters in ((w0, w0, w2, w2), (w1, w1, w3, w3)))
    quarter = (np.arange(n) >> 8) & 3
    return a, b, (quarter & 1) == 1


def radius(k):
    """k: 24-bit integers."""
    u = (k.astype(np.float32) + np.float32(0.5)).astype(np.float64) / 2**24
    return np.sqrt(-2.0 * np.log(u))


def normals(seed, step, path, n):
    """z_j ~ N(0, 1), float64 (n,)."""
    a, b, odd = entry_words(seed, step, path, n)
    angle = 2.0 * np.pi * ((b >> np.uint64(16)).astype(np.float64) + 0.5) / 65536.0
    return radius(a >> np.uint64(8)) * np.where(odd, np.sin(angle), np.cos(angle))


def mask_bits(seed, step, path, n):
    """12-bit integers (n,)."""
    a, b, odd = entry_words(seed, step, path, n)
    low, high = b & np.uint64(4095), ((a & np.uint64(255)) << np.uint64(4)) | ((b >> np.uint64(12)) & np.uint64(15))
    return np.where(odd, high, low).astype(np.int64)


def tensor_mask_bits(seed, step, path):
    return int(words(seed, step, path, 0xFFFFFFFF)[1] & LOW) & 4095
