"""Work per tensor on a GPU: sums of blocks to means, and the rule of PATS worked out on the device."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc, no-any-return, name-defined"
# ruff: noqa: F403, F405, PLR0915

import triton
import triton.language as tl

from ..noise import BLOCK, MASK_LEVELS, WORD
from .cuda_columns import *
from .cuda_stream import philox
from .rows import NO_NAME

_BLOCK, _WORD, _MASK_LEVELS, _NO_NAME = (tl.constexpr(c) for c in (BLOCK, WORD, MASK_LEVELS, NO_NAME))


@triton.jit
def reduce_rows(table, sums, row_sums, CHUNK: tl.constexpr):
    """Launch 2, one program per tensor: the sum of its blocks' sums, in an order that depends on its size alone."""
    number = tl.program_id(0)
    row = table + number * TENSOR_COLUMNS
    if tl.load(row + TENSOR_MEAN_AT) != 0:
        blocks = (tl.load(row + TENSOR_SIZE) + (_BLOCK - 1)) // _BLOCK
        first = tl.load(row + TENSOR_FIRST_BLOCK)
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


@triton.jit
def _setting(group, column, there):
    return tl.load(group + column, mask=there, other=0.0)


@triton.jit
def _note(record, column, value, there):
    tl.store(record + column, value.to(tl.float32), mask=there)


@triton.jit
def _tensor_mask_bits(step, identity, key_low, key_high):
    """The 12 mask bits of whole tensors, see :func:`module.noise.tensor_mask_bits`."""
    c0 = tl.full(step.shape, _WORD, tl.uint32)
    _, word, _, _ = philox(
        c0, step.to(tl.uint32), identity.to(tl.uint32), (identity >> 32).to(tl.uint32), key_low, key_high
    )
    return (word & 4095).to(tl.int32)


@triton.jit
def _decide(flags, found_inf):
    """Whether the step is done: every gradient finite, and no objection from a gradient scaler. Keeps count."""
    bad, refused, first_bad = tl.load(flags + FLAG_BAD), tl.load(flags + FLAG_REFUSED), tl.load(flags + FLAG_FIRST_BAD)
    fit = tl.load(found_inf) == 0.0
    go = (bad == _NO_NAME) & fit
    counts = (bad != _NO_NAME) & fit  # a step that the gradient scaler refuses is its own affair
    tl.debug_barrier()  # threads share what they load: none may load what another has stored already
    tl.store(flags + FLAG_REFUSED, tl.where(counts, refused + 1, refused))
    tl.store(flags + FLAG_FIRST_BAD, tl.where(counts & (refused == 0), bad, first_bad))
    tl.store(flags + FLAG_SKIP, tl.where(go, 0, 1))
    return go


@triton.jit(do_not_specialize=["n_rows"])
def advance_rows(table, settings, row_sums, records, draws, flags, found_inf, n_rows, ROWS: tl.constexpr):
    """Launch 3, one program for all tensors: the decision to skip, steps and means, and the rule worked out per tensor.

    Scalars are float64, as on the CPU, and rounded to float32 in the records.
    """
    number = tl.arange(0, ROWS)
    there = number < n_rows
    row = table + number * TENSOR_COLUMNS
    group = settings + tl.load(row + TENSOR_GROUP, mask=there, other=0) * SETTING_COLUMNS

    go = _decide(flags, found_inf)
    advances = number < tl.where(go, n_rows, 0)

    steps = tl.load(row + TENSOR_STEP_AT, mask=there, other=0)
    has_step = there & (steps != 0)
    step_at = steps.to(tl.pointer_type(tl.float32))
    step = tl.load(step_at, mask=has_step, other=0.0) + 1.0

    means = tl.load(row + TENSOR_MEAN_AT, mask=there, other=0)
    tracked = there & (means != 0)
    mean_at = means.to(tl.pointer_type(tl.float64))
    size = tl.load(row + TENSOR_SIZE, mask=tracked, other=1).to(tl.float64)
    now = tl.load(row_sums + number, mask=tracked, other=0.0) / size
    beta = _setting(group, SETTING_BETA, there)
    rest = _setting(group, SETTING_ONE_MINUS_BETA, there)
    mean = beta * tl.load(mean_at, mask=tracked, other=0.0) + rest * now
    tl.debug_barrier()
    tl.store(step_at, step, mask=has_step & advances)
    tl.store(mean_at, mean, mask=tracked & advances)
    step = step.to(tl.int32)
    entries = tl.sum(tl.where(tracked, size, 0.0), axis=0)
    model_mean = tl.sum(tl.where(tracked, mean * size, 0.0), axis=0) / tl.maximum(entries, 1.0)
    by_model = _setting(group, SETTING_MODEL_MEAN, there) != 0.0
    mean = tl.where(by_model, model_mean, mean)

    lrs = tl.load(row + TENSOR_LR_AT, mask=there, other=0)
    lr = _setting(group, SETTING_LR, there)
    lr_tensor = tl.load(lrs.to(tl.pointer_type(tl.float32)), mask=lrs != 0, other=0.0)
    lr = tl.where(lrs != 0, lr_tensor.to(tl.float64), lr)
    corrected = _setting(group, SETTING_BIAS_CORRECTION, there) != 0.0
    beta1 = _setting(group, SETTING_BETA1, there)
    step_size = tl.where(corrected, lr / (1.0 - tl.where(corrected, _power(beta1, step), 0.0)), lr)
    amplitude = _setting(group, SETTING_NOISE_SCALE, there)
    times_lr = _setting(group, SETTING_NOISE_TIMES_LR, there) != 0.0
    amplitude = tl.where(times_lr, amplitude * lr, amplitude)

    upper = _setting(group, SETTING_THRESHOLD, there)
    times_mean = _setting(group, SETTING_THRESHOLD_TIMES_MEAN, there) != 0.0
    upper = tl.where(times_mean, upper * mean, upper)
    threshold = _setting(group, SETTING_MASK_THRESHOLD, there).to(tl.int32)
    key_low = _setting(group, SETTING_KEY_LOW, there).to(tl.int64).to(tl.uint32)
    key_high = _setting(group, SETTING_KEY_HIGH, there).to(tl.int64).to(tl.uint32)
    identity = tl.load(row + TENSOR_IDENTITY, mask=there, other=0)
    by_tensor = _setting(group, SETTING_TENSOR_MASK, there) != 0.0
    spared = _tensor_mask_bits(step, identity, key_low, key_high) >= threshold
    upper = tl.where(by_tensor & spared, float("-inf"), upper)  # no sensitivity is below it
    threshold = tl.where(by_tensor, _MASK_LEVELS, threshold)

    record = records + number * RECORD_COLUMNS
    for column in tl.static_range(AS_STATED):  # the first columns of both tables
        _note(record, column, _setting(group, column, there), there)
    _note(record, RECORD_STEP_SIZE, step_size, there)
    _note(record, RECORD_MEAN, mean, there)
    _note(record, RECORD_AMPLITUDE, amplitude, there)
    _note(record, RECORD_UPPER, upper, there)
    draw = draws + number * DRAW_COLUMNS
    tl.store(draw + DRAW_STEP, step, mask=there)
    tl.store(draw + DRAW_MASK_THRESHOLD, threshold, mask=there)
    tl.store(draw + DRAW_KEY_LOW, key_low.to(tl.int32, bitcast=True), mask=there)
    tl.store(draw + DRAW_KEY_HIGH, key_high.to(tl.int32, bitcast=True), mask=there)
