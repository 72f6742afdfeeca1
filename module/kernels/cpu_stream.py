"""The noise stream on the CPU: the generator, normals and mask bits of a block, and dropout's factors.

The integer generator stands apart from the floating-point work, so that both are vectorised.

Error bounds (the tests go through every radius and every angle): the radius ``sqrt(-2 ln u)`` is within 1 unit in the
last place of its exact value, relative error 1.9 * 2**-24; ``cos`` and ``sin`` within a relative 2.7 * 2**-24; so the
normal, their rounded product, within 5.1 units in the last place.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc, no-any-return"
# mypy: disable-error-code="attr-defined, call-arg"

import numpy as np
from numba import float32, int32, uint32, uint64

from ..noise import LANES, WORD
from .compiled import as_float, bits, inlined
from .polynomial import COSINE, LN2, LOG, SINE, SQRT_HALF_BITS

_Q0, _Q1, _Q2, _Q3, _Q4, _Q5, _Q6, _Q7 = (np.float32(c) for c in LOG)
_LN2 = np.float32(LN2)
_S0, _S1, _S2, _S3 = (np.float32(c) for c in SINE)
_C0, _C1, _C2, _C3, _C4 = (np.float32(c) for c in COSINE)
_HALF, _ONE, _ZERO = np.float32(0.5), np.float32(1.0), np.float32(0.0)
_ULP24, _TURN16 = np.float32(2.0**-24), np.float32(2.0**-16)
_MULTIPLIER0, _MULTIPLIER1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_KEY_STEP0, _KEY_STEP1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
_LOW = np.uint64(WORD)
_SHIFT32 = np.uint64(32)
_SQRT_HALF_BITS = np.int32(SQRT_HALF_BITS)
DROPOUT_BLOCK = 8 * LANES  # 16 bits of each of a generator call's four words per entry


@inlined
def _round(x0, x1, x2, x3, k0, k1):
    p0 = _MULTIPLIER0 * x0
    p1 = _MULTIPLIER1 * x2
    return (p1 >> _SHIFT32) ^ x1 ^ k0, p1 & _LOW, (p0 >> _SHIFT32) ^ x3 ^ k1, p0 & _LOW


@inlined
def philox_block(block, step, id_low, id_high, key_low, key_high, lanes, w0, w1, w2, w3):
    """Fill the four word arrays for the first ``lanes`` lanes of a block."""
    base = uint64(block) << uint64(8)
    k0, k1 = uint64(key_low), uint64(key_high)
    a1, b1 = (k0 + _KEY_STEP0) & _LOW, (k1 + _KEY_STEP1) & _LOW
    a2, b2 = (a1 + _KEY_STEP0) & _LOW, (b1 + _KEY_STEP1) & _LOW
    a3, b3 = (a2 + _KEY_STEP0) & _LOW, (b2 + _KEY_STEP1) & _LOW
    a4, b4 = (a3 + _KEY_STEP0) & _LOW, (b3 + _KEY_STEP1) & _LOW
    a5, b5 = (a4 + _KEY_STEP0) & _LOW, (b4 + _KEY_STEP1) & _LOW
    a6, b6 = (a5 + _KEY_STEP0) & _LOW, (b5 + _KEY_STEP1) & _LOW
    a7, b7 = (a6 + _KEY_STEP0) & _LOW, (b6 + _KEY_STEP1) & _LOW
    a8, b8 = (a7 + _KEY_STEP0) & _LOW, (b7 + _KEY_STEP1) & _LOW
    a9, b9 = (a8 + _KEY_STEP0) & _LOW, (b8 + _KEY_STEP1) & _LOW
    for lane in range(lanes):  # the ten rounds stand unrolled, so that this is the innermost loop
        x0, x1, x2, x3 = _round(base + uint64(lane), uint64(step), uint64(id_low), uint64(id_high), k0, k1)
        x0, x1, x2, x3 = _round(x0, x1, x2, x3, a1, b1)
        x0, x1, x2, x3 = _round(x0, x1, x2, x3, a2, b2)
        x0, x1, x2, x3 = _round(x0, x1, x2, x3, a3, b3)
        x0, x1, x2, x3 = _round(x0, x1, x2, x3, a4, b4)
        x0, x1, x2, x3 = _round(x0, x1, x2, x3, a5, b5)
        x0, x1, x2, x3 = _round(x0, x1, x2, x3, a6, b6)
        x0, x1, x2, x3 = _round(x0, x1, x2, x3, a7, b7)
        x0, x1, x2, x3 = _round(x0, x1, x2, x3, a8, b8)
        x0, x1, x2, x3 = _round(x0, x1, x2, x3, a9, b9)
        w0[lane] = uint32(x0)
        w1[lane] = uint32(x1)
        w2[lane] = uint32(x2)
        w3[lane] = uint32(x3)


@inlined
def normals_block(a, b, lanes, start, z, mask):
    """Turn word pairs into normals and mask bits: even quarter at ``start``, odd quarter 256 after it."""
    even_z, odd_z = z[start : start + lanes], z[start + LANES : start + LANES + lanes]
    even_mask, odd_mask = mask[start : start + lanes], mask[start + LANES : start + LANES + lanes]
    for lane in range(lanes):
        u = (float32(int32(a[lane] >> uint32(8))) + _HALF) * _ULP24
        exponent = int32(int32(bits(u) - _SQRT_HALF_BITS) >> 23)
        f = as_float(int32(bits(u) - int32(exponent << 23))) - _ONE
        f2 = f * f
        low, high = (_Q0 + f * _Q1) + f2 * (_Q2 + f * _Q3), (_Q4 + f * _Q5) + f2 * (_Q6 + f * _Q7)
        log1p = f + (f2 * f * (low + f2 * f2 * high) - _HALF * f2)
        minus_log = -(float32(exponent) * _LN2 + log1p)
        radius = np.sqrt(minus_log + minus_log)

        n = int32(b[lane] >> uint32(16))
        quadrant = int32(int32(n + 8192) >> 14)
        t = (float32(int32(n - int32(quadrant << 14))) + _HALF) * _TURN16
        t2 = t * t
        sine = t * ((_S0 + t2 * _S1) + (t2 * t2) * (_S2 + t2 * _S3))
        cosine = (_C0 + t2 * _C1) + (t2 * t2) * ((_C2 + t2 * _C3) + (t2 * t2) * _C4)
        swap = int32(quadrant & 1) != 0
        x = sine if swap else cosine
        y = cosine if swap else sine
        # Quadrants 1 and 2 have a negative cosine, 2 and 3 a negative sine: flip the sign bits.
        even_z[lane] = radius * as_float(int32(bits(x) ^ int32(int32(int32(quadrant + 1) & 2) << 30)))
        odd_z[lane] = radius * as_float(int32(bits(y) ^ int32(int32(quadrant & 2) << 30)))
    for lane in range(lanes):
        even_mask[lane] = int32(b[lane] & uint32(4095))
        odd_mask[lane] = int32((a[lane] & uint32(255)) << uint32(4)) | int32((b[lane] >> uint32(12)) & uint32(15))


@inlined
def _keep(words, threshold, kept, out, start):
    low, high = out[start : start + LANES], out[start + LANES : start + 2 * LANES]
    for lane in range(LANES):
        low[lane] = kept if (words[lane] & uint32(0xFFFF)) < threshold else _ZERO
    for lane in range(LANES):
        high[lane] = kept if (words[lane] >> uint32(16)) < threshold else _ZERO


@inlined
def dropout_block(block, key_low, key_high, threshold, kept, words, out, start):
    """Write ``kept`` from ``start`` on where 16 random bits are below ``threshold``, else 0; see :mod:`module.dropout`.

    ``words`` is scratch, (4, LANES) uint32.
    """
    low, high = uint32(block & uint64(0xFFFFFF)), uint32(block >> uint64(24))
    w0, w1, w2, w3 = words[0], words[1], words[2], words[3]
    philox_block(low, high, uint32(0), uint32(0), key_low, key_high, LANES, w0, w1, w2, w3)
    _keep(w0, threshold, kept, out, start)
    _keep(w1, threshold, kept, out, start + 2 * LANES)
    _keep(w2, threshold, kept, out, start + 4 * LANES)
    _keep(w3, threshold, kept, out, start + 6 * LANES)
