"""The noise stream in Triton, as :mod:`module.noise` defines it."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc, no-any-return"

import triton
import triton.language as tl

from ..noise import PHILOX_KEY_STEPS, PHILOX_MULTIPLIERS
from .polynomial import COSINE, LN2, LOG, SINE, SQRT_HALF_BITS

_MULTIPLIER0, _MULTIPLIER1 = (tl.constexpr(m) for m in PHILOX_MULTIPLIERS)
_KEY_STEP0, _KEY_STEP1 = (tl.constexpr(k) for k in PHILOX_KEY_STEPS)

_Q0, _Q1, _Q2, _Q3, _Q4, _Q5, _Q6, _Q7 = (tl.constexpr(c) for c in LOG)
_LN2 = tl.constexpr(LN2)
_S0, _S1, _S2, _S3 = (tl.constexpr(c) for c in SINE)
_C0, _C1, _C2, _C3, _C4 = (tl.constexpr(c) for c in COSINE)
_ULP24, _TURN16 = tl.constexpr(2.0**-24), tl.constexpr(2.0**-16)
_SQRT_HALF_BITS = tl.constexpr(SQRT_HALF_BITS)


@triton.jit
def philox(c0, c1, c2, c3, k0, k1):
    """Philox4x32-10 of uint32 counters and keys."""
    for _ in tl.static_range(10):
        high0, high1 = tl.umulhi(c0, _MULTIPLIER0), tl.umulhi(c2, _MULTIPLIER1)
        low0, low1 = c0 * _MULTIPLIER0, c2 * _MULTIPLIER1
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0 = k0 + _KEY_STEP0
        k1 = k1 + _KEY_STEP1
    return c0, c1, c2, c3


@triton.jit
def normals(a, b):
    """Word pairs to the normals of the even and of the odd quarter."""
    u = ((a >> 8).to(tl.int32).to(tl.float32) + 0.5) * _ULP24
    bits = u.to(tl.int32, bitcast=True)
    exponent = (bits - _SQRT_HALF_BITS) >> 23
    f = (bits - (exponent << 23)).to(tl.float32, bitcast=True) - 1.0
    f2 = f * f
    low, high = (_Q0 + f * _Q1) + f2 * (_Q2 + f * _Q3), (_Q4 + f * _Q5) + f2 * (_Q6 + f * _Q7)
    log1p = f + (f2 * f * (low + f2 * f2 * high) - 0.5 * f2)
    minus_log = -(exponent.to(tl.float32) * _LN2 + log1p)
    radius = tl.sqrt_rn(minus_log + minus_log)

    n = (b >> 16).to(tl.int32)
    quadrant = (n + 8192) >> 14
    t = ((n - (quadrant << 14)).to(tl.float32) + 0.5) * _TURN16
    t2 = t * t
    sine = t * ((_S0 + t2 * _S1) + (t2 * t2) * (_S2 + t2 * _S3))
    cosine = (_C0 + t2 * _C1) + (t2 * t2) * ((_C2 + t2 * _C3) + (t2 * t2) * _C4)
    swap = (quadrant & 1) != 0
    x = tl.where(swap, sine, cosine).to(tl.int32, bitcast=True) ^ (((quadrant + 1) & 2) << 30)
    y = tl.where(swap, cosine, sine).to(tl.int32, bitcast=True) ^ ((quadrant & 2) << 30)
    return radius * x.to(tl.float32, bitcast=True), radius * y.to(tl.float32, bitcast=True)


@triton.jit
def mask_bits(a, b):
    """Word pairs to the mask bits of the even and of the odd quarter."""
    return (b & 4095).to(tl.int32), (((a & 255) << 4) | ((b >> 12) & 15)).to(tl.int32)
