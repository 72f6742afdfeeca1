"""The step on the CPU: numba loops over blocks of 1,024 entries, compiled once and cached on disk.

All arithmetic is float32 without contraction or reassociation, so results do not depend on the vector width, the
machine or the number of threads. Inner loops are written for LLVM's vectoriser: no calls, no branches, structure of
arrays; the integer generator apart from the floating-point work.

Error bounds (the tests go through every radius and every angle): the radius ``sqrt(-2 ln u)`` is within 1 unit in the
last place of its exact value, relative error 1.9 * 2**-24; ``cos`` and ``sin`` within a relative 2.7 * 2**-24; so the
normal, their rounded product, within 5.1 units in the last place.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc, no-any-return"
# mypy: disable-error-code="attr-defined, call-overload, call-arg"
# Every numba function of the package stands in this file: numba's disk cache notices changes in the caller's file only.

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, float32, float64, from_dtype, int32, int64, njit, types, uint16, uint32, uint64, void
from numba.extending import intrinsic

from ..noise import BLOCK, LANES, WORD
from .rows import ROW, RULE_MTDNN, RULE_NONE, count_blocks
from .threads import for_each_chunk

_ROWS = from_dtype(ROW)[::1]
_F32, _I32, _U32, _F64 = (types.Array(kind, 1, "C") for kind in (float32, int32, uint32, float64))

# ln(1 + f) = f - f^2/2 + f^3 q(f) on [1/sqrt 2 - 1, sqrt 2 - 1]: own minimax fit of q, relative error 6e-9.
_Q0, _Q1, _Q2, _Q3 = (np.float32(c) for c in (0.33333331, -0.25000823, 0.20001227, -0.16623355))
_Q4, _Q5, _Q6, _Q7 = (np.float32(c) for c in (0.14201760, -0.13160197, 0.12761563, -0.07634438))
_LN2 = np.float32(0.69314718)
# sin(2 pi t) = t S(t^2), cos(2 pi t) = C(t^2) for |t| <= 1/8 turn: own minimax fits, relative error 4e-9 and 6e-11.
_S0, _S1, _S2, _S3 = (np.float32(c) for c in (6.2831855, -41.341662, 81.592354, -75.393562))
_C0, _C1, _C2, _C3, _C4 = (np.float32(c) for c in (1.0, -19.739208, 64.939308, -85.442299, 59.202797))
_HALF, _ONE, _ZERO = np.float32(0.5), np.float32(1.0), np.float32(0.0)
DROPOUT_BLOCK = 8 * LANES  # 16 bits of each of a generator call's four words per entry
_ULP24, _TURN16 = np.float32(2.0**-24), np.float32(2.0**-16)
_MULTIPLIER0, _MULTIPLIER1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_KEY_STEP0, _KEY_STEP1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
_LOW = np.uint64(WORD)
_SHIFT32 = np.uint64(32)
_SQRT_HALF_BITS, _ONE_BITS = np.int32(0x3F3504F3), np.int32(0x3F800000)


# error_model: Python's check for a zero divisor is a branch, and a branch is not vectorised.
_inlined = njit(error_model="numpy")


def _compiled(*signatures: Any) -> Callable[[Any], Any]:
    def decorate(function: Any) -> Any:
        # Part of the cache's file name: the same file under another package name (an editable installation of the
        # library) must not get code that looks for this one.
        function.__qualname__ = f"{__package__}.{function.__qualname__}"
        try:
            return njit(*signatures, nogil=True, error_model="numpy", cache=True)(function)
        except RuntimeError:  # neither the package's folder nor the user's cache folder can be written
            return njit(*signatures, nogil=True, error_model="numpy")(function)

    return decorate


def _pointer_to(kind):
    """Intrinsic that makes a pointer of an address."""

    def at(typing_context, address):
        def generate(context, builder, signature, arguments):
            return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

        return types.CPointer(kind)(int64), generate

    return intrinsic(at)


_floats_at, _doubles_at = _pointer_to(float32), _pointer_to(float64)


@intrinsic
def _bits(typing_context, value):
    """The bits of a float32 as int32."""

    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.IntType(32))

    return int32(float32), generate


@intrinsic
def _float(typing_context, value):
    """The float32 of these bits."""

    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.FloatType())

    return float32(int32), generate


@intrinsic
def _prefetch(typing_context, address):
    """Ask the processor to fetch the cache line of an address."""

    def generate(context, builder, signature, arguments):
        pointer = builder.inttoptr(arguments[0], ir.IntType(8).as_pointer())
        word = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [pointer.type, word, word, word])
        function = builder.module.declare_intrinsic("llvm.prefetch", [pointer.type], kind)
        builder.call(function, [pointer, word(0), word(2), word(1)])  # to read, into the second-level cache, data
        return context.get_dummy_value()

    return types.void(int64), generate


@_inlined
def _prefetch_block(row, start):
    """The arrays of a block, so that memory works while its predecessor's noise is computed."""
    stop = min(start + BLOCK, row.size)
    for j in range(start, stop, 16):  # 64 bytes
        _prefetch(row.theta + 4 * j)
        _prefetch(row.gradient + row.gradient_stride * j)
        _prefetch(row.momentum + 4 * j)
        _prefetch(row.infinity_norm + 4 * j)
        _prefetch(row.sensitivity + 4 * j)


@_inlined
def _round(x0, x1, x2, x3, k0, k1):
    p0 = _MULTIPLIER0 * x0
    p1 = _MULTIPLIER1 * x2
    return (p1 >> _SHIFT32) ^ x1 ^ k0, p1 & _LOW, (p0 >> _SHIFT32) ^ x3 ^ k1, p0 & _LOW


@_compiled(void(uint32, uint32, uint32, uint32, uint32, uint32, int64, _U32, _U32, _U32, _U32))
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


@_compiled(void(_U32, _U32, int64, int64, _F32, _I32))
def normals_block(a, b, lanes, start, z, mask):
    """Turn word pairs into normals and mask bits: even quarter at ``start``, odd quarter 256 after it."""
    even_z, odd_z = z[start : start + lanes], z[start + LANES : start + LANES + lanes]
    even_mask, odd_mask = mask[start : start + lanes], mask[start + LANES : start + LANES + lanes]
    for lane in range(lanes):
        u = (float32(int32(a[lane] >> uint32(8))) + _HALF) * _ULP24
        exponent = int32(int32(_bits(u) - _SQRT_HALF_BITS) >> 23)
        f = _float(int32(_bits(u) - int32(exponent << 23))) - _ONE
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
        even_z[lane] = radius * _float(int32(_bits(x) ^ int32(int32(int32(quadrant + 1) & 2) << 30)))
        odd_z[lane] = radius * _float(int32(_bits(y) ^ int32(int32(quadrant & 2) << 30)))
    for lane in range(lanes):
        even_mask[lane] = int32(b[lane] & uint32(4095))
        odd_mask[lane] = int32((a[lane] & uint32(255)) << uint32(4)) | int32((b[lane] >> uint32(12)) & uint32(15))


@_inlined
def _row_of(rows, block):
    low, high = 0, len(rows) - 1
    while low < high:
        middle = (low + high + 1) // 2
        if rows[middle].first_block <= block:
            low = middle
        else:
            high = middle - 1
    return low


@_compiled(void(_ROWS, int64, int64, _F64))
def partial_sums(rows, first, last, sums):
    """Sum of |theta g| (tracked rows) or of 0 g (others: NaN where g is not finite) of each block in a range."""
    products = np.empty(BLOCK, np.float32)
    i = _row_of(rows, first)
    for block in range(first, last):
        while i + 1 < len(rows) and rows[i + 1].first_block <= block:
            i += 1
        start = (block - rows[i].first_block) * BLOCK
        n = min(BLOCK, rows[i].size - start)
        gradient = carray(_floats_at(rows[i].gradient + rows[i].gradient_stride * start), (n,))
        if rows[i].track == 1:
            theta = carray(_floats_at(rows[i].theta + 4 * start), (n,))
            for j in range(n):
                products[j] = abs(theta[j] * gradient[j])
        else:
            for j in range(n):
                products[j] = gradient[j] * _ZERO
        for j in range(n, BLOCK):
            products[j] = _ZERO
        width = BLOCK // 2  # halving: the same tree whatever the vector width
        while width >= 1:
            for j in range(width):
                products[j] += products[j + width]
            width //= 2
        sums[block] = products[0]


@_inlined
def _update_sensitivity(row, start, n, factor):
    theta = carray(_floats_at(row.theta + 4 * start), (n,))
    gradient = carray(_floats_at(row.gradient + row.gradient_stride * start), (n,))
    sensitivity = carray(_floats_at(row.sensitivity + 4 * start), (n,))
    beta, one_minus_beta, eps = row.beta, row.one_minus_beta, row.sensitivity_eps
    for j in range(n):
        now = abs(theta[j] * gradient[j])
        average = beta * sensitivity[j] + one_minus_beta * now
        sensitivity[j] = average
        factor[j] = abs(now - average) / (average + eps)


@_inlined
def _update_parameters(row, start, n, factor, direction):
    theta = carray(_floats_at(row.theta + 4 * start), (n,))
    gradient = carray(_floats_at(row.update_gradient + row.gradient_stride * start), (n,))
    momentum = carray(_floats_at(row.momentum + 4 * start), (n,))
    norm = carray(_floats_at(row.infinity_norm + 4 * start), (n,))
    beta1, one_minus_beta1, beta2 = row.beta1, row.one_minus_beta1, row.beta2
    eps, decay, step_size = row.eps, row.weight_decay, row.step_size
    if row.rule == RULE_MTDNN:
        for j in range(n):
            m = beta1 * momentum[j] + one_minus_beta1 * gradient[j]
            u = max(beta2 * norm[j], abs(gradient[j]) + eps)
            momentum[j] = m
            norm[j] = u
            direction[j] = m / (u + eps) + decay * theta[j]
    else:
        for j in range(n):
            g = gradient[j] + decay * theta[j]
            m = beta1 * momentum[j] + one_minus_beta1 * g
            u = max(beta2 * norm[j], abs(g) + eps)
            momentum[j] = m
            norm[j] = u
            direction[j] = m / u
    if row.scale == 1:
        for j in range(n):
            direction[j] = direction[j] * factor[j]
    for j in range(n):
        theta[j] = theta[j] - step_size * direction[j]


@_inlined
def _subtract_noise(row, start, n, z, mask):
    theta = carray(_floats_at(row.theta + 4 * start), (n,))
    sensitivity = carray(_floats_at(row.sensitivity + 4 * start), (n,))
    mean, eps, cap, amplitude = row.mean, row.sensitivity_eps, row.max_ratio, row.amplitude
    upper, lower, threshold = row.upper, row.lower, row.mask_threshold
    for j in range(n):
        ratio = mean / (sensitivity[j] + eps)
        capped = cap if ratio > cap else ratio
        perturbed = (mask[j] < threshold) & (sensitivity[j] < upper) & (ratio >= lower)
        noisy = theta[j] - (amplitude * capped) * z[j]
        theta[j] = noisy if perturbed else theta[j]


@_inlined
def _pats_adamax(row, start, n, z, mask):
    """The three functions above in one loop, for their most frequent case: the same operations in the same order."""
    theta = carray(_floats_at(row.theta + 4 * start), (n,))
    gradient = carray(_floats_at(row.gradient + row.gradient_stride * start), (n,))
    momentum = carray(_floats_at(row.momentum + 4 * start), (n,))
    norm = carray(_floats_at(row.infinity_norm + 4 * start), (n,))
    sensitivity = carray(_floats_at(row.sensitivity + 4 * start), (n,))
    beta1, one_minus_beta1, beta2 = row.beta1, row.one_minus_beta1, row.beta2
    adamax_eps, decay, step_size = row.eps, row.weight_decay, row.step_size
    beta, one_minus_beta = row.beta, row.one_minus_beta
    mean, eps, cap, amplitude = row.mean, row.sensitivity_eps, row.max_ratio, row.amplitude
    upper, lower, threshold = row.upper, row.lower, row.mask_threshold
    for j in range(n):
        s = beta * sensitivity[j] + one_minus_beta * abs(theta[j] * gradient[j])
        m = beta1 * momentum[j] + one_minus_beta1 * gradient[j]
        u = max(beta2 * norm[j], abs(gradient[j]) + adamax_eps)
        sensitivity[j] = s
        momentum[j] = m
        norm[j] = u
        stepped = theta[j] - step_size * (m / (u + adamax_eps) + decay * theta[j])
        ratio = mean / (s + eps)
        capped = cap if ratio > cap else ratio
        perturbed = (mask[j] < threshold) & (s < upper) & (ratio >= lower)
        noisy = stepped - (amplitude * capped) * z[j]
        theta[j] = noisy if perturbed else stepped


@_compiled(void(_ROWS, int64, int64))
def update_blocks(rows, first, last):
    """Track, scale, update and perturb every entry of a range of blocks."""
    w0, w1 = np.empty(LANES, np.uint32), np.empty(LANES, np.uint32)
    w2, w3 = np.empty(LANES, np.uint32), np.empty(LANES, np.uint32)
    z, mask = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.int32)
    factor, direction = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
    i = _row_of(rows, first)
    for block in range(first, last):
        while i + 1 < len(rows) and rows[i + 1].first_block <= block:
            i += 1
        row = rows[i]
        block_in_tensor = block - row.first_block
        start = block_in_tensor * BLOCK
        n = min(BLOCK, row.size - start)
        if row.noise == 1:
            _prefetch_block(row, start)
            lanes = min(LANES, n)
            index = uint32(block_in_tensor)
            id_low, id_high = uint32(row.identity & WORD), uint32((row.identity >> 32) & WORD)
            philox_block(index, row.step, id_low, id_high, row.key_low, row.key_high, lanes, w0, w1, w2, w3)
            normals_block(w0, w1, lanes, 0, z, mask)
            normals_block(w2, w3, lanes, 2 * LANES, z, mask)
            plain = row.scale == 0 and row.rule == RULE_MTDNN and row.update_gradient == row.gradient
            if row.track == 1 and plain:
                _pats_adamax(row, start, n, z, mask)
                continue
        if row.track == 1:
            _update_sensitivity(row, start, n, factor)
        if row.rule != RULE_NONE:
            _update_parameters(row, start, n, factor, direction)
        if row.noise == 1:
            _subtract_noise(row, start, n, z, mask)


@_compiled(void(_ROWS, _F64, _F64))
def load_scalars(rows, steps, means):
    """Read the tensors' steps and mean sensitivities; 0 where there is no sensitivity."""
    for i in range(len(rows)):
        steps[i] = carray(_floats_at(rows[i].step_at), (1,))[0]
        means[i] = carray(_doubles_at(rows[i].mean_at), (1,))[0] if rows[i].mean_at != 0 else 0.0


@_compiled(void(_ROWS, _F64, _F64))
def store_scalars(rows, steps, means):
    """Write what :func:`load_scalars` reads."""
    for i in range(len(rows)):
        carray(_floats_at(rows[i].step_at), (1,))[0] = float32(steps[i])
        if rows[i].mean_at != 0:
            carray(_doubles_at(rows[i].mean_at), (1,))[0] = means[i]


@_inlined
def _keep(words, threshold, kept, out, start):
    for lane in range(LANES):
        out[start + lane] = kept if (words[lane] & uint32(0xFFFF)) < threshold else uint32(0)
    for lane in range(LANES):
        out[start + LANES + lane] = kept if (words[lane] >> uint32(16)) < threshold else uint32(0)


def _dropout_signature(element):
    return void(uint64, int64, int64, uint32, uint32, uint32, uint32, types.Array(element, 1, "C"))


@_compiled([_dropout_signature(uint32), _dropout_signature(uint16)])
def dropout_blocks(place, first, last, key_low, key_high, threshold, kept, out):
    """Write the bits ``kept`` where 16 random bits are below ``threshold``, else 0: see :mod:`module.dropout`."""
    w0, w1 = np.empty(LANES, np.uint32), np.empty(LANES, np.uint32)
    w2, w3 = np.empty(LANES, np.uint32), np.empty(LANES, np.uint32)
    for block in range(first, last):
        here = place + uint64(block)
        low, high = uint32(here & uint64(0xFFFFFF)), uint32(here >> uint64(24))
        philox_block(low, high, uint32(0), uint32(0), key_low, key_high, LANES, w0, w1, w2, w3)
        start = block * DROPOUT_BLOCK
        _keep(w0, threshold, kept, out, start)
        _keep(w1, threshold, kept, out, start + 2 * LANES)
        _keep(w2, threshold, kept, out, start + 4 * LANES)
        _keep(w3, threshold, kept, out, start + 6 * LANES)


def sum_rows(rows: np.ndarray) -> np.ndarray:
    """First pass: per row the sum of ``|theta g|`` in float64; NaN or infinite where a gradient is not finite.

    Rows without ``track`` give 0 (or NaN). Nothing is written. The sum is over fixed blocks in a fixed order.
    """
    blocks = np.empty(count_blocks(rows), np.float64)
    for_each_chunk(len(blocks), lambda first, last: partial_sums(rows, first, last, blocks))
    return np.add.reduceat(blocks, rows["first_block"]) if len(rows) else blocks


def update_rows(rows: np.ndarray) -> None:
    """Second pass: everything else, in place."""
    for_each_chunk(count_blocks(rows), lambda first, last: update_blocks(rows, first, last))
