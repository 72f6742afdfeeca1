"""The step on a GPU: Triton kernels over tables of all tensors. :mod:`module.kernels.device_step` launches them.

Same stream, same polynomials and same order of float32 operations as :mod:`module.kernels.cpu`; launched without fused
multiply-adds, so only the sums of a tensor (and the means made of them) may differ, in the last bits of a float64.
A program takes one block of 1,024 entries as four quarters of 256 lanes, as the stream does: see :mod:`module.noise`.

Written and tested through Triton's interpreter on a CPU; not yet run on a GPU.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc, no-any-return"
# ruff: noqa: N803, PLR2004

import triton
import triton.language as tl

from module.kernels.device_table import NO_NAME, Column, Draw, Flag, Record, Setting
from module.kernels.rows import RULE_NONE, RULE_TORCH
from module.noise import BLOCK, LANES, MASK_LEVELS, PHILOX_KEY_STEPS, PHILOX_MULTIPLIERS, WORD

_BLOCK, _LANES = tl.constexpr(BLOCK), tl.constexpr(LANES)
_WORD, _MASK_LEVELS = tl.constexpr(WORD), tl.constexpr(MASK_LEVELS)
_NO_NAME = tl.constexpr(NO_NAME)
_RULE_NONE, _RULE_TORCH = tl.constexpr(RULE_NONE), tl.constexpr(RULE_TORCH)
_MULTIPLIER0, _MULTIPLIER1 = (tl.constexpr(m) for m in PHILOX_MULTIPLIERS)
_KEY_STEP0, _KEY_STEP1 = (tl.constexpr(k) for k in PHILOX_KEY_STEPS)

# The polynomials of kernels/cpu.py, where their errors are given.
_Q0, _Q1, _Q2, _Q3 = (tl.constexpr(c) for c in (0.33333331, -0.25000823, 0.20001227, -0.16623355))
_Q4, _Q5, _Q6, _Q7 = (tl.constexpr(c) for c in (0.14201760, -0.13160197, 0.12761563, -0.07634438))
_LN2 = tl.constexpr(0.69314718)
_S0, _S1, _S2, _S3 = (tl.constexpr(c) for c in (6.2831855, -41.341662, 81.592354, -75.393562))
_C0, _C1, _C2, _C3, _C4 = (tl.constexpr(c) for c in (1.0, -19.739208, 64.939308, -85.442299, 59.202797))
_ULP24, _TURN16 = tl.constexpr(2.0**-24), tl.constexpr(2.0**-16)
_SQRT_HALF_BITS = tl.constexpr(0x3F3504F3)

_NO_NAME = tl.constexpr(NO_NAME)

# Triton reads globals as constexpr only. The tables' columns, in their order:
_THETA, _GRADIENT, _MOMENTUM, _NORM, _SENSITIVITY, _STEP, _MEAN, *_rest = (tl.constexpr(int(c)) for c in Column)
_LR, _SIZE, _FIRST_BLOCK, _IDENTITY, _GROUP, _NAME = _rest
_SET_LR, _SET_BETA1, _SET_ONE_MINUS_BETA1, _SET_BETA2, _SET_EPS, _SET_DECAY, *_rest = (
    tl.constexpr(int(c)) for c in Setting
)
_SET_BIAS, _SET_BETA, _SET_ONE_MINUS_BETA, _SET_SENSITIVITY_EPS, _SET_SCALE, _SET_TIMES_LR, *_rest = _rest
_SET_UPPER, _SET_TIMES_MEAN, _SET_LOWER, _SET_MAX_RATIO, _SET_MODEL_MEAN, _SET_TENSOR_MASK, *_rest = _rest
_SET_THRESHOLD, _SET_KEY_LOW, _SET_KEY_HIGH = _rest
_REC_STEP_SIZE, _REC_BETA1, _REC_ONE_MINUS_BETA1, _REC_BETA2, _REC_EPS, _REC_DECAY, *_rest = (
    tl.constexpr(int(c)) for c in Record
)
_REC_BETA, _REC_ONE_MINUS_BETA, _REC_SENSITIVITY_EPS, _REC_MEAN, _REC_AMPLITUDE, *_rest = _rest
_REC_UPPER, _REC_LOWER, _REC_MAX_RATIO = _rest
_DRAW_STEP, _DRAW_THRESHOLD, _DRAW_KEY_LOW, _DRAW_KEY_HIGH = (tl.constexpr(int(c)) for c in Draw)
_BAD, _SKIP, _REFUSED, _FIRST_BAD = (tl.constexpr(int(c)) for c in Flag)
_COLUMNS, _SETTINGS, _RECORDS, _DRAWS = (tl.constexpr(len(t)) for t in (Column, Setting, Record, Draw))


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


@triton.jit
def _load(address, offsets, size, DTYPE: tl.constexpr, FULL: tl.constexpr, ALIGNED: tl.constexpr):
    """Entries of a tensor as float32. FULL: none of them is past its end. ALIGNED: the address divides by 16."""
    # bfloat16 goes as bits: the upper half of a float32, the same on every device.
    pointer = address.to(tl.pointer_type(tl.uint16 if DTYPE == tl.bfloat16 else DTYPE))
    if ALIGNED:
        pointer = tl.multiple_of(pointer, 16)
    if FULL:
        values = tl.load(pointer + offsets)
    else:
        values = tl.load(pointer + offsets, mask=offsets < size, other=0)
    if DTYPE == tl.bfloat16:
        result = (values.to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    else:
        result = values.to(tl.float32)
    return result


@triton.jit
def _store(address, offsets, size, values, DTYPE: tl.constexpr, FULL: tl.constexpr, ALIGNED: tl.constexpr):
    """Write float32 values, rounded to nearest even where the tensor is narrower."""
    pointer = address.to(tl.pointer_type(tl.uint16 if DTYPE == tl.bfloat16 else DTYPE))
    if ALIGNED:
        pointer = tl.multiple_of(pointer, 16)
    if DTYPE == tl.bfloat16:
        bits = values.to(tl.uint32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        out = tl.where(values == values, rounded, 0x7FC0).to(tl.uint16)
    else:
        out = values.to(DTYPE)
    if FULL:
        tl.store(pointer + offsets, out)
    else:
        tl.store(pointer + offsets, out, mask=offsets < size)


@triton.jit
def _measure(row, start, size, inverse, TRACK, THETA, GRADIENT, FULL: tl.constexpr, ALIGNED: tl.constexpr):
    """Sum of |theta g| over a block, float64; of 0 g where the tensor has no sensitivity."""
    theta, gradient = tl.load(row + _THETA), tl.load(row + _GRADIENT)
    pairs = tl.zeros([_LANES], tl.float64)
    for half in tl.static_range(2):  # the first two additions are the CPU kernel's: quarters 0 + 2, and 1 + 3
        offsets = start + half * _LANES + tl.arange(0, _LANES)
        g = _load(gradient, offsets, size, GRADIENT, FULL, ALIGNED) * inverse
        h = _load(gradient, offsets + 2 * _LANES, size, GRADIENT, FULL, ALIGNED) * inverse
        if TRACK:
            s = tl.abs(_load(theta, offsets, size, THETA, FULL, ALIGNED) * g)
            t = tl.abs(_load(theta, offsets + 2 * _LANES, size, THETA, FULL, ALIGNED) * h)
        else:
            s, t = g * 0.0, h * 0.0
        pairs += (s + t).to(tl.float64)
    return tl.sum(pairs, axis=0)


@triton.jit
def measure_blocks(
    table, block_rows, first, sums, flags, grad_scale,
    TRACK: tl.constexpr, THETA: tl.constexpr, GRADIENT: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """Launch 1, one program per block: its sum of |theta g|, and a note of tensors that are not finite."""
    block = first + tl.program_id(0)
    row = table + tl.load(block_rows + block) * _COLUMNS
    start, size = (block - tl.load(row + _FIRST_BLOCK)) * _BLOCK, tl.load(row + _SIZE)
    inverse = tl.div_rn(1.0, tl.load(grad_scale))
    if start + _BLOCK <= size:
        total = _measure(row, start, size, inverse, TRACK, THETA, GRADIENT, True, ALIGNED)
    else:
        total = _measure(row, start, size, inverse, TRACK, THETA, GRADIENT, False, ALIGNED)
    if TRACK:
        tl.store(sums + block, total)
    if not (tl.abs(total) < float("inf")):
        tl.atomic_min(flags + _BAD, tl.load(row + _NAME).to(tl.int32))
