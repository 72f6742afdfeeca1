"""The step on a GPU: Triton kernels over tables of all tensors. :mod:`module.kernels.device_step` launches them.

Same stream, same polynomials and same order of float32 operations as :mod:`module.kernels.cpu`; launched without fused
multiply-adds, so only the sums of a tensor (and the means made of them) may differ, in the last bits of a float64.
A program takes one block of 1,024 entries as four quarters of 256 lanes, as the stream does: see :mod:`module.noise`.

Tested through Triton's interpreter on a CPU, and on a GPU where there is one.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc, no-any-return, name-defined"
# ruff: noqa: F403, F405, PLR0912, PLR0915, SIM108

import torch
import triton
import triton.language as tl

from ..noise import BLOCK, LANES
from .cuda_columns import *
from .cuda_rows import advance_rows, reduce_rows
from .cuda_stream import mask_bits, normals, philox
from .rows import NO_NAME, RULE_NONE, RULE_TORCH

__all__ = ["DTYPES", "advance_rows", "measure_blocks", "reduce_rows", "update_blocks"]

DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}

_BLOCK, _LANES, _NO_NAME = (tl.constexpr(c) for c in (BLOCK, LANES, NO_NAME))
_RULE_NONE, _RULE_TORCH = tl.constexpr(RULE_NONE), tl.constexpr(RULE_TORCH)


@triton.jit
def _load(address, offsets, size, DTYPE: tl.constexpr, FULL: tl.constexpr, ALIGNED: tl.constexpr):
    """Entries of a tensor as float32. FULL: none of them is past its end. ALIGNED: the address divides by 16."""
    # bfloat16 goes as bits: the upper half of a float32, the same on every device.
    pointer = address.to(tl.pointer_type(tl.uint16 if tl.bfloat16 == DTYPE else DTYPE))
    if ALIGNED:
        pointer = tl.multiple_of(pointer, 16)
    if FULL:
        values = tl.load(pointer + offsets)
    else:
        values = tl.load(pointer + offsets, mask=offsets < size, other=0)
    if tl.bfloat16 == DTYPE:
        result = (values.to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    else:
        result = values.to(tl.float32)
    return result


@triton.jit
def _store(address, offsets, size, values, DTYPE: tl.constexpr, FULL: tl.constexpr, ALIGNED: tl.constexpr):
    """Write float32 values, rounded to nearest even where the tensor is narrower."""
    pointer = address.to(tl.pointer_type(tl.uint16 if tl.bfloat16 == DTYPE else DTYPE))
    if ALIGNED:
        pointer = tl.multiple_of(pointer, 16)
    if tl.bfloat16 == DTYPE:
        bits = values.to(tl.uint32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        out = tl.where((bits & 0x7FFFFFFF) > 0x7F800000, 0x7FC0, rounded).to(tl.uint16)
    else:
        out = values.to(DTYPE)
    if FULL:
        tl.store(pointer + offsets, out)
    else:
        tl.store(pointer + offsets, out, mask=offsets < size)


@triton.jit
def _measure(row, start, size, inverse, TRACK, THETA, GRADIENT, FULL: tl.constexpr, ALIGNED: tl.constexpr):
    """Sum of |theta g| over a block, float64; of 0 g where the tensor has no sensitivity."""
    theta, gradient = tl.load(row + TENSOR_THETA), tl.load(row + TENSOR_GRADIENT)
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
    row = table + tl.load(block_rows + block) * TENSOR_COLUMNS
    start, size = (block - tl.load(row + TENSOR_FIRST_BLOCK)) * _BLOCK, tl.load(row + TENSOR_SIZE)
    inverse = tl.div_rn(1.0, tl.load(grad_scale))
    if start + _BLOCK <= size:
        total = _measure(row, start, size, inverse, TRACK, THETA, GRADIENT, True, ALIGNED)
    else:
        total = _measure(row, start, size, inverse, TRACK, THETA, GRADIENT, False, ALIGNED)
    if TRACK:
        tl.store(sums + block, total)
    if not (tl.abs(total) < float("inf")):
        tl.atomic_min(flags + FLAG_BAD, tl.load(row + TENSOR_NAME).to(tl.int32))


@triton.jit
def _update_block(
    row, record, draw, block, size, inverse,
    RULE: tl.constexpr, TRACK: tl.constexpr, SCALE: tl.constexpr, NOISE: tl.constexpr,
    MASKED: tl.constexpr, THETA: tl.constexpr, GRADIENT: tl.constexpr, FULL: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    # Loaded once: nothing may be reordered across a store.
    theta_at, gradient_at, sensitivity_at = (
        tl.load(row + TENSOR_THETA),
        tl.load(row + TENSOR_GRADIENT),
        tl.load(row + TENSOR_SENSITIVITY),
    )
    if MASKED:
        masked_at = tl.load(row + TENSOR_UPDATE_GRADIENT)
    momentum_at, norm_at = tl.load(row + TENSOR_MOMENTUM), tl.load(row + TENSOR_INFINITY_NORM)
    step_size, decay, eps = (
        tl.load(record + RECORD_STEP_SIZE),
        tl.load(record + RECORD_WEIGHT_DECAY),
        tl.load(record + RECORD_EPS),
    )
    beta1, rest1 = tl.load(record + RECORD_BETA1), tl.load(record + RECORD_ONE_MINUS_BETA1)
    beta2 = tl.load(record + RECORD_BETA2)
    beta, rest = tl.load(record + RECORD_BETA), tl.load(record + RECORD_ONE_MINUS_BETA)
    eps_s, mean = tl.load(record + RECORD_SENSITIVITY_EPS), tl.load(record + RECORD_MEAN)
    amplitude, cap = tl.load(record + RECORD_AMPLITUDE), tl.load(record + RECORD_MAX_RATIO)
    upper, lower = tl.load(record + RECORD_UPPER), tl.load(record + RECORD_LOWER)
    threshold = tl.load(draw + DRAW_MASK_THRESHOLD)
    lanes = tl.arange(0, _LANES)
    if NOISE:
        identity = tl.load(row + TENSOR_IDENTITY)
        w0, w1, w2, w3 = philox(
            (block.to(tl.uint32) << 8) | lanes.to(tl.uint32),
            tl.load(draw + DRAW_STEP).to(tl.uint32, bitcast=True),
            identity.to(tl.uint32),
            (identity >> 32).to(tl.uint32),
            tl.load(draw + DRAW_KEY_LOW).to(tl.uint32, bitcast=True),
            tl.load(draw + DRAW_KEY_HIGH).to(tl.uint32, bitcast=True),
        )
    for quarter in tl.static_range(4):
        offsets = block * _BLOCK + quarter * _LANES + lanes
        theta = _load(theta_at, offsets, size, THETA, FULL, ALIGNED)
        if TRACK or RULE != _RULE_NONE:
            gradient = _load(gradient_at, offsets, size, GRADIENT, FULL, ALIGNED) * inverse
        if TRACK or NOISE:
            sensitivity = _load(sensitivity_at, offsets, size, tl.float32, FULL, ALIGNED)
        if TRACK:
            now = tl.abs(theta * gradient)
            sensitivity = beta * sensitivity + rest * now
            _store(sensitivity_at, offsets, size, sensitivity, tl.float32, FULL, ALIGNED)
        if RULE != _RULE_NONE:
            if MASKED:
                gradient = _load(masked_at, offsets, size, GRADIENT, FULL, ALIGNED) * inverse
            if RULE == _RULE_TORCH:
                gradient = gradient + decay * theta
            m = _load(momentum_at, offsets, size, tl.float32, FULL, ALIGNED)
            u = _load(norm_at, offsets, size, tl.float32, FULL, ALIGNED)
            m = beta1 * m + rest1 * gradient
            u = tl.maximum(beta2 * u, tl.abs(gradient) + eps)
            _store(momentum_at, offsets, size, m, tl.float32, FULL, ALIGNED)
            _store(norm_at, offsets, size, u, tl.float32, FULL, ALIGNED)
            if RULE == _RULE_TORCH:
                direction = tl.div_rn(m, u)
            else:
                direction = tl.div_rn(m, u + eps) + decay * theta
            if SCALE:
                direction = direction * tl.div_rn(tl.abs(now - sensitivity), sensitivity + eps_s)
            theta = theta - step_size * direction
        if NOISE:
            if quarter == 0:
                z, odd_z = normals(w0, w1)
                bits, odd_bits = mask_bits(w0, w1)
            elif quarter == 2:
                z, odd_z = normals(w2, w3)
                bits, odd_bits = mask_bits(w2, w3)
            else:
                z, bits = odd_z, odd_bits
            ratio = tl.div_rn(mean, sensitivity + eps_s)
            capped = tl.where(ratio > cap, cap, ratio)
            perturbed = (bits < threshold) & (sensitivity < upper) & (ratio >= lower)
            theta = tl.where(perturbed, theta - (amplitude * capped) * z, theta)
        if NOISE or RULE != _RULE_NONE:
            _store(theta_at, offsets, size, theta, THETA, FULL, ALIGNED)


@triton.jit(do_not_specialize=["first"])
def update_blocks(
    table, block_rows, first, records, draws, flags, grad_scale,
    RULE: tl.constexpr, TRACK: tl.constexpr, SCALE: tl.constexpr, NOISE: tl.constexpr,
    MASKED: tl.constexpr, THETA: tl.constexpr, GRADIENT: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """Launch 4, one program per block: track, scale, update and perturb its entries, unless the step is skipped.

    MASKED: the update takes another gradient than the sensitivity.
    """
    position = first + tl.program_id(0)
    if position == 0:
        tl.store(flags + FLAG_BAD, _NO_NAME)  # for the next step; nobody reads it here
    if tl.load(flags + FLAG_SKIP) != 0:
        return
    number = tl.load(block_rows + position)
    row, record, draw = (
        table + number * TENSOR_COLUMNS,
        records + number * RECORD_COLUMNS,
        draws + number * DRAW_COLUMNS,
    )
    block, size = position - tl.load(row + TENSOR_FIRST_BLOCK), tl.load(row + TENSOR_SIZE)
    inverse = tl.div_rn(1.0, tl.load(grad_scale))
    if (block + 1) * _BLOCK <= size:
        _update_block(
            row, record, draw, block, size, inverse, RULE, TRACK, SCALE, NOISE, MASKED, THETA, GRADIENT, True, ALIGNED
        )
    else:
        _update_block(
            row, record, draw, block, size, inverse, RULE, TRACK, SCALE, NOISE, MASKED, THETA, GRADIENT, False, ALIGNED
        )
