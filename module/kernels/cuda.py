"""The step on a GPU: Triton kernels over tables of all tensors. :mod:`module.kernels.device_step` launches them.

Same stream, same polynomials and same order of float32 operations as :mod:`module.kernels.cpu`; launched without fused
multiply-adds, so only the sums of a tensor (and the means made of them) may differ, in the last bits of a float64.
A program takes one block of 1,024 entries as four quarters of 256 lanes, as the stream does: see :mod:`module.noise`.

Written and tested through Triton's interpreter on a CPU; not yet run on a GPU.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc, no-any-return"
# ruff: noqa: N803, PLR2004

import torch
import triton
import triton.language as tl

from module.kernels.device_table import NO_NAME, Column, Draw, Flag, Record, Setting
from module.kernels.rows import RULE_NONE, RULE_TORCH
from module.noise import BLOCK, LANES, MASK_LEVELS, PHILOX_KEY_STEPS, PHILOX_MULTIPLIERS, WORD

DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}

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


@triton.jit(do_not_specialize=["first"])
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


@triton.jit
def reduce_rows(table, sums, row_sums, CHUNK: tl.constexpr):
    """Launch 2, one program per tensor: the sum of its blocks' sums, in an order that depends on its size alone."""
    number = tl.program_id(0)
    row = table + number * _COLUMNS
    if tl.load(row + _MEAN) != 0:
        blocks = (tl.load(row + _SIZE) + (_BLOCK - 1)) // _BLOCK
        first = tl.load(row + _FIRST_BLOCK)
        lanes = tl.arange(0, CHUNK)
        total = tl.zeros([CHUNK], tl.float64)
        for start in range(0, blocks, CHUNK):
            total += tl.load(sums + first + start + lanes, mask=start + lanes < blocks, other=0.0)
        tl.store(row_sums + number, tl.sum(total, axis=0))


@triton.jit
def _power(base, exponent):
    """``base ** exponent`` in float64 for integers in [0, 2**24), the largest step that a float32 counts to."""
    result = tl.full(base.shape, 1.0, tl.float64)
    for bit in tl.static_range(24):
        result = tl.where(((exponent >> bit) & 1) != 0, result * base, result)
        base = base * base
    return result


@triton.jit(do_not_specialize=["n_rows"])
def advance_rows(table, settings, row_sums, records, draws, flags, found_inf, n_rows, ROWS: tl.constexpr):
    """Launch 3, one program for all tensors: the decision to skip, steps and means, and the rule worked out per tensor.

    Scalars are float64, as on the CPU, and rounded to float32 in the records.
    """
    number = tl.arange(0, ROWS)
    there = number < n_rows
    row = table + number * _COLUMNS
    group = settings + tl.load(row + _GROUP, mask=there, other=0) * _SETTINGS

    bad = tl.load(flags + _BAD)
    fit = tl.load(found_inf) == 0.0
    if (bad != _NO_NAME) & fit:  # a step that the gradient scaler refuses is its own affair
        refused = tl.load(flags + _REFUSED)
        tl.store(flags + _REFUSED, refused + 1)
        if refused == 0:
            tl.store(flags + _FIRST_BAD, bad)
    go = (bad == _NO_NAME) & fit
    tl.store(flags + _SKIP, 1 - go.to(tl.int32))
    advances = number < tl.where(go, n_rows, 0)

    steps = tl.load(row + _STEP, mask=there, other=0)
    has_step = there & (steps != 0)
    step_at = steps.to(tl.pointer_type(tl.float32))
    step = tl.load(step_at, mask=has_step, other=0.0) + 1.0
    tl.store(step_at, step, mask=has_step & advances)
    step = step.to(tl.int32)

    means = tl.load(row + _MEAN, mask=there, other=0)
    tracked = there & (means != 0)
    mean_at = means.to(tl.pointer_type(tl.float64))
    size = tl.load(row + _SIZE, mask=tracked, other=1).to(tl.float64)
    now = tl.load(row_sums + number, mask=tracked, other=0.0) / size
    beta = tl.load(group + _SET_BETA, mask=there, other=0.0)
    rest = tl.load(group + _SET_ONE_MINUS_BETA, mask=there, other=0.0)
    mean = beta * tl.load(mean_at, mask=tracked, other=0.0) + rest * now
    tl.store(mean_at, mean, mask=tracked & advances)
    entries = tl.sum(tl.where(tracked, size, 0.0), axis=0)
    model_mean = tl.sum(tl.where(tracked, mean * size, 0.0), axis=0) / tl.maximum(entries, 1.0)
    by_model = tl.load(group + _SET_MODEL_MEAN, mask=there, other=0.0) != 0.0
    mean = tl.where(by_model, model_mean, mean)

    lrs = tl.load(row + _LR, mask=there, other=0)
    lr = tl.load(group + _SET_LR, mask=there, other=0.0)
    lr_tensor = tl.load(lrs.to(tl.pointer_type(tl.float32)), mask=lrs != 0, other=0.0)
    lr = tl.where(lrs != 0, lr_tensor.to(tl.float64), lr)
    corrected = tl.load(group + _SET_BIAS, mask=there, other=0.0) != 0.0
    beta1 = tl.load(group + _SET_BETA1, mask=there, other=0.0)
    step_size = tl.where(corrected, lr / (1.0 - tl.where(corrected, _power(beta1, step), 0.0)), lr)
    amplitude = tl.load(group + _SET_SCALE, mask=there, other=0.0)
    times_lr = tl.load(group + _SET_TIMES_LR, mask=there, other=0.0) != 0.0
    amplitude = tl.where(times_lr, amplitude * lr, amplitude)

    upper = tl.load(group + _SET_UPPER, mask=there, other=0.0)
    times_mean = tl.load(group + _SET_TIMES_MEAN, mask=there, other=0.0) != 0.0
    upper = tl.where(times_mean, upper * mean, upper)
    threshold = tl.load(group + _SET_THRESHOLD, mask=there, other=0.0).to(tl.int32)
    key_low = tl.load(group + _SET_KEY_LOW, mask=there, other=0.0).to(tl.int64).to(tl.uint32)
    key_high = tl.load(group + _SET_KEY_HIGH, mask=there, other=0.0).to(tl.int64).to(tl.uint32)
    identity = tl.load(row + _IDENTITY, mask=there, other=0)
    c0 = tl.full([ROWS], _WORD, tl.uint32)
    words = philox(c0, step.to(tl.uint32), identity.to(tl.uint32), (identity >> 32).to(tl.uint32), key_low, key_high)
    by_tensor = tl.load(group + _SET_TENSOR_MASK, mask=there, other=0.0) != 0.0
    spared = (words[1] & 4095).to(tl.int32) >= threshold
    upper = tl.where(by_tensor & spared, float("-inf"), upper)  # no sensitivity is below it
    threshold = tl.where(by_tensor, _MASK_LEVELS, threshold)

    record = records + number * _RECORDS
    tl.store(record + _REC_STEP_SIZE, step_size.to(tl.float32), mask=there)
    tl.store(record + _REC_BETA1, beta1.to(tl.float32), mask=there)
    _copy(record + _REC_ONE_MINUS_BETA1, group + _SET_ONE_MINUS_BETA1, there)
    _copy(record + _REC_BETA2, group + _SET_BETA2, there)
    _copy(record + _REC_EPS, group + _SET_EPS, there)
    _copy(record + _REC_DECAY, group + _SET_DECAY, there)
    tl.store(record + _REC_BETA, beta.to(tl.float32), mask=there)
    tl.store(record + _REC_ONE_MINUS_BETA, rest.to(tl.float32), mask=there)
    _copy(record + _REC_SENSITIVITY_EPS, group + _SET_SENSITIVITY_EPS, there)
    tl.store(record + _REC_MEAN, mean.to(tl.float32), mask=there)
    tl.store(record + _REC_AMPLITUDE, amplitude.to(tl.float32), mask=there)
    tl.store(record + _REC_UPPER, upper.to(tl.float32), mask=there)
    _copy(record + _REC_LOWER, group + _SET_LOWER, there)
    _copy(record + _REC_MAX_RATIO, group + _SET_MAX_RATIO, there)
    draw = draws + number * _DRAWS
    tl.store(draw + _DRAW_STEP, step, mask=there)
    tl.store(draw + _DRAW_THRESHOLD, threshold, mask=there)
    tl.store(draw + _DRAW_KEY_LOW, key_low.to(tl.int32, bitcast=True), mask=there)
    tl.store(draw + _DRAW_KEY_HIGH, key_high.to(tl.int32, bitcast=True), mask=there)


@triton.jit
def _copy(record, setting, there):
    tl.store(record, tl.load(setting, mask=there, other=0.0).to(tl.float32), mask=there)


@triton.jit
def _update_quarter(
    row, record, offsets, size, inverse, z, bits, threshold,
    RULE: tl.constexpr, TRACK: tl.constexpr, SCALE: tl.constexpr, NOISE: tl.constexpr,
    THETA: tl.constexpr, GRADIENT: tl.constexpr, FULL: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    theta_at, sensitivity_at = tl.load(row + _THETA), tl.load(row + _SENSITIVITY)
    theta = _load(theta_at, offsets, size, THETA, FULL, ALIGNED)
    eps_s = tl.load(record + _REC_SENSITIVITY_EPS)
    if TRACK or RULE != _RULE_NONE:
        gradient = _load(tl.load(row + _GRADIENT), offsets, size, GRADIENT, FULL, ALIGNED) * inverse
    if TRACK or NOISE:
        sensitivity = _load(sensitivity_at, offsets, size, tl.float32, FULL, ALIGNED)
    if TRACK:
        now = tl.abs(theta * gradient)
        sensitivity = tl.load(record + _REC_BETA) * sensitivity + tl.load(record + _REC_ONE_MINUS_BETA) * now
        _store(sensitivity_at, offsets, size, sensitivity, tl.float32, FULL, ALIGNED)
    if RULE != _RULE_NONE:
        momentum_at, norm_at = tl.load(row + _MOMENTUM), tl.load(row + _NORM)
        eps, decay = tl.load(record + _REC_EPS), tl.load(record + _REC_DECAY)
        if RULE == _RULE_TORCH:
            gradient = gradient + decay * theta
        m = _load(momentum_at, offsets, size, tl.float32, FULL, ALIGNED)
        u = _load(norm_at, offsets, size, tl.float32, FULL, ALIGNED)
        m = tl.load(record + _REC_BETA1) * m + tl.load(record + _REC_ONE_MINUS_BETA1) * gradient
        u = tl.maximum(tl.load(record + _REC_BETA2) * u, tl.abs(gradient) + eps)
        _store(momentum_at, offsets, size, m, tl.float32, FULL, ALIGNED)
        _store(norm_at, offsets, size, u, tl.float32, FULL, ALIGNED)
        if RULE == _RULE_TORCH:
            direction = tl.div_rn(m, u)
        else:
            direction = tl.div_rn(m, u + eps) + decay * theta
        if SCALE:
            direction = direction * tl.div_rn(tl.abs(now - sensitivity), sensitivity + eps_s)
        theta = theta - tl.load(record + _REC_STEP_SIZE) * direction
    if NOISE:
        ratio = tl.div_rn(tl.load(record + _REC_MEAN), sensitivity + eps_s)
        cap = tl.load(record + _REC_MAX_RATIO)
        capped = tl.where(ratio > cap, cap, ratio)
        perturbed = (bits < threshold) & (sensitivity < tl.load(record + _REC_UPPER))
        perturbed = perturbed & (ratio >= tl.load(record + _REC_LOWER))
        theta = tl.where(perturbed, theta - (tl.load(record + _REC_AMPLITUDE) * capped) * z, theta)
    if NOISE or RULE != _RULE_NONE:
        _store(theta_at, offsets, size, theta, THETA, FULL, ALIGNED)


@triton.jit
def _update_block(
    row, record, draw, block, size, inverse,
    RULE: tl.constexpr, TRACK: tl.constexpr, SCALE: tl.constexpr, NOISE: tl.constexpr,
    THETA: tl.constexpr, GRADIENT: tl.constexpr, FULL: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    lanes = tl.arange(0, _LANES)
    offsets = block * _BLOCK + lanes
    threshold = tl.load(draw + _DRAW_THRESHOLD)
    if NOISE:
        identity = tl.load(row + _IDENTITY)
        w0, w1, w2, w3 = philox(
            (block.to(tl.uint32) << 8) | lanes.to(tl.uint32),
            tl.load(draw + _DRAW_STEP).to(tl.uint32, bitcast=True),
            identity.to(tl.uint32),
            (identity >> 32).to(tl.uint32),
            tl.load(draw + _DRAW_KEY_LOW).to(tl.uint32, bitcast=True),
            tl.load(draw + _DRAW_KEY_HIGH).to(tl.uint32, bitcast=True),
        )
    for half in tl.static_range(2):
        even_z, odd_z, even_bits, odd_bits = 0.0, 0.0, 0, 0
        if NOISE:
            a, b = (w0, w1) if half == 0 else (w2, w3)
            even_z, odd_z = normals(a, b)
            even_bits, odd_bits = mask_bits(a, b)
        even = offsets + half * 2 * _LANES
        _update_quarter(
            row, record, even, size, inverse, even_z, even_bits, threshold,
            RULE, TRACK, SCALE, NOISE, THETA, GRADIENT, FULL, ALIGNED,
        )  # fmt: skip
        _update_quarter(
            row, record, even + _LANES, size, inverse, odd_z, odd_bits, threshold,
            RULE, TRACK, SCALE, NOISE, THETA, GRADIENT, FULL, ALIGNED,
        )  # fmt: skip


@triton.jit(do_not_specialize=["first"])
def update_blocks(
    table, block_rows, first, records, draws, flags, grad_scale,
    RULE: tl.constexpr, TRACK: tl.constexpr, SCALE: tl.constexpr, NOISE: tl.constexpr,
    THETA: tl.constexpr, GRADIENT: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """Launch 4, one program per block: track, scale, update and perturb its entries, unless the step is skipped."""
    position = first + tl.program_id(0)
    if position == 0:
        tl.store(flags + _BAD, _NO_NAME)  # for the next step; nobody reads it here
    if tl.load(flags + _SKIP) != 0:
        return
    number = tl.load(block_rows + position)
    row, record, draw = table + number * _COLUMNS, records + number * _RECORDS, draws + number * _DRAWS
    block, size = position - tl.load(row + _FIRST_BLOCK), tl.load(row + _SIZE)
    inverse = tl.div_rn(1.0, tl.load(grad_scale))
    if (block + 1) * _BLOCK <= size:
        _update_block(
            row, record, draw, block, size, inverse, RULE, TRACK, SCALE, NOISE, THETA, GRADIENT, True, ALIGNED
        )
    else:
        _update_block(
            row, record, draw, block, size, inverse, RULE, TRACK, SCALE, NOISE, THETA, GRADIENT, False, ALIGNED
        )
