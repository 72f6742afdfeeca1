"""Layers of an encoder on the CPU: what torch does in several passes over its activations, in one.

Results do not depend on the number of threads. Sums over a row may depend on the processor, as torch's products do.
Legend: B examples, n_tokens real tokens, H heads, d size of a head, D = H d, T keys of an example's rectangle.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc, no-any-return"
# mypy: disable-error-code="attr-defined, call-arg"

import numpy as np
from numba import carray, njit, uint64

from ..noise import LANES
from .compiled import as_float, bits, bytes_at, floats_at, inlined, integers_at, job_at, next_chunk, region
from .cpu_stream import DROPOUT_BLOCK, dropout_block

NORM_CHUNK = 32
_WIDE = 16  # entries of a vector, and more than enough
_ZERO, _ONE = np.float32(0.0), np.float32(1.0)

# exp(f) = 1 + f + f^2 p(f) on [-ln 2 / 2, ln 2 / 2]: own minimax fit of p, relative error 3e-9.
_E0, _E1, _E2, _E3, _E4 = (np.float32(c) for c in (0.49999993, 0.16666521, 0.04166839, 0.00836871, 0.00138146))
_LOG2_E = np.float32(1.44269504)
_LN2_HIGH, _LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)  # the high part times an integer is exact
_ROUND = np.float32(12582912.0)  # 1.5 * 2**23: added, it leaves the nearest integer in the lowest bits
_ROUND_BITS = np.int32(0x4B400000)
_LOWEST = np.float32(-87.0)

_DROPOUT = (
    ("place", np.uint64),  # of the mask's first block in the stream
    ("key_low", np.uint32),
    ("key_high", np.uint32),
    ("threshold", np.uint32),  # entries whose 16 bits are below it are kept; 0: no dropout
    ("kept", np.float32),  # their factor
)
EXAMPLE = ("slot", "width", "token", "length", "square")
"""Columns of a table of examples: first slot, slots, first token, tokens, and sum of ``width**2`` before it."""


@inlined
def _exp(x):
    """e**x, x <= 0, within 2 units in the last place; 0 where it would leave the normal numbers; NaN stays."""
    within = _LOWEST if x < _LOWEST else x
    shifted = within * _LOG2_E + _ROUND
    whole = shifted - _ROUND
    f = (within - whole * _LN2_HIGH) - whole * _LN2_LOW
    f2 = f * f
    mantissa = _ONE + (f + f2 * ((_E0 + f * _E1) + f2 * ((_E2 + f * _E3) + f2 * _E4)))
    power = np.int32(np.int32(bits(shifted) - _ROUND_BITS) << 23)
    result = as_float(np.int32(bits(mantissa) + power))
    return x if np.isnan(x) else _ZERO if x < _LOWEST else result


@njit(error_model="numpy", fastmath={"reassoc"})
def _sum(values, n):
    """Sum of the first n values."""
    total = _ZERO
    for j in range(n):
        total += values[j]
    return total


@inlined
def _largest(values, n, lanes):
    """Largest of the first n values, a multiple of 16, that is a number; ``lanes`` is scratch, (16,)."""
    for lane in range(_WIDE):
        lanes[lane] = values[lane]
    for k in range(_WIDE, n, _WIDE):
        for lane in range(_WIDE):
            lanes[lane] = values[k + lane] if values[k + lane] > lanes[lane] else lanes[lane]
    width = _WIDE // 2
    while width >= 1:
        for lane in range(width):
            lanes[lane] = lanes[lane + width] if lanes[lane + width] > lanes[lane] else lanes[lane]
        width //= 2
    return lanes[0]


@inlined
def _buffer(width):
    """Room for the factors of ``width`` entries that may begin anywhere in a block."""
    return np.ones((width - 1) // DROPOUT_BLOCK * DROPOUT_BLOCK + 2 * DROPOUT_BLOCK, np.float32)


@inlined
def _factors(job, start, width, words, buffer, held):
    """Dropout's factors of the entries from ``start`` on, in ``buffer`` from the returned place.

    ``held`` are the first block in the buffer and the one behind its last; calls come with rising starts.
    """
    if job.threshold == 0:
        return 0
    first, last = start // DROPOUT_BLOCK, (start + width - 1) // DROPOUT_BLOCK
    if last >= held[1]:
        if first >= held[1]:
            held[0] = held[1] = first
        else:
            away = (first - held[0]) * DROPOUT_BLOCK
            for j in range((held[1] - first) * DROPOUT_BLOCK):
                buffer[j] = buffer[j + away]
            held[0] = first
        while held[1] <= last:
            block, place = job.place + uint64(held[1]), (held[1] - held[0]) * DROPOUT_BLOCK
            dropout_block(block, job.key_low, job.key_high, job.threshold, job.kept, words, buffer, place)
            held[1] += 1
    return start - held[0] * DROPOUT_BLOCK


@region(*_DROPOUT, ("size", np.int64), ("out", np.int64))
def dropout_factors(jobs):
    """Factors of ``size`` entries, in blocks of ``DROPOUT_BLOCK``."""
    job = job_at(jobs)
    out = carray(floats_at(job.out), (job.size,))
    words, block_of = np.empty((4, LANES), np.uint32), np.empty(DROPOUT_BLOCK, np.float32)
    while True:
        first, last = next_chunk(jobs)
        if first >= last:
            return
        for block in range(first, last):
            here, start = job.place + uint64(block), block * DROPOUT_BLOCK
            dropout_block(here, job.key_low, job.key_high, job.threshold, job.kept, words, block_of, 0)
            for j in range(min(DROPOUT_BLOCK, job.size - start)):
                out[start + j] = block_of[j]


_HEADS = (("examples", np.int64), ("heads", np.int64), ("head_size", np.int64))
_PAIRS = tuple((f"{kind}_{number}", np.int64) for number in range(3) for kind in ("tokens", "slots"))


@inlined
def _example(job, number):
    row = carray(integers_at(job.examples), (job.blocks, len(EXAMPLE)))[number]
    return row[0], row[1], row[2], row[3], row[4]


@inlined
def _head(tokens, slots, job, number, head):
    """An example's rows in (n_tokens, D) of one head, and the head's (T, d) in the rectangles."""
    slot, width, token, length, _ = _example(job, number)
    size, whole = job.head_size, job.heads * job.head_size
    start = slot * whole + head * width * size
    rows = carray(floats_at(tokens + 4 * token * whole), (length, job.heads, size))[:, head]
    return rows, carray(floats_at(slots + 4 * start), (width, size))


@inlined
def _split(tokens, slots, bias, job, number, scale):
    added = carray(floats_at(bias), (job.heads, job.head_size))
    for head in range(job.heads):
        rows, square = _head(tokens, slots, job, number, head)
        for t in range(len(rows)):
            if bias != 0:
                for j in range(job.head_size):
                    square[t, j] = (rows[t, j] + added[head, j]) * scale
            else:
                for j in range(job.head_size):
                    square[t, j] = rows[t, j] * scale
        for t in range(len(rows), len(square)):
            for j in range(job.head_size):
                square[t, j] = _ZERO


@inlined
def _merge(tokens, slots, job, number, scale):
    for head in range(job.heads):
        rows, square = _head(tokens, slots, job, number, head)
        for t in range(len(rows)):
            for j in range(job.head_size):
                rows[t, j] = square[t, j] * scale


@region(*_HEADS, *_PAIRS, *((f"bias_{number}", np.int64) for number in range(3)), ("scale", np.float32))
def split_heads(jobs):
    """Rows of tokens, (n_tokens, D), to rectangles of (B, H, T, d), padding 0, up to three; the first is scaled.

    Biases (D,) are added to rows of tokens before; 0: there are none.
    """
    job = job_at(jobs)
    while True:
        first, last = next_chunk(jobs)
        if first >= last:
            return
        for number in range(first, last):
            _split(job.tokens_0, job.slots_0, job.bias_0, job, number, job.scale)
            if job.tokens_1 != 0:
                _split(job.tokens_1, job.slots_1, job.bias_1, job, number, _ONE)
                _split(job.tokens_2, job.slots_2, job.bias_2, job, number, _ONE)


@region(*_HEADS, *_PAIRS, ("scale", np.float32))
def merge_heads(jobs):
    """Back from rectangles to rows of tokens; padding is left out, the first is scaled."""
    job = job_at(jobs)
    while True:
        first, last = next_chunk(jobs)
        if first >= last:
            return
        for number in range(first, last):
            _merge(job.tokens_0, job.slots_0, job, number, job.scale)
            if job.tokens_1 != 0:
                _merge(job.tokens_1, job.slots_1, job, number, _ONE)
                _merge(job.tokens_2, job.slots_2, job, number, _ONE)


_SCORES = (("widest", np.int64), ("scores", np.int64), ("dropped", np.int64))


@region(*_HEADS, *_DROPOUT, *_SCORES)
def softmax_forward(jobs):
    """Scores to probabilities in place, and times dropout's factors in ``dropped``; 0 where a row or key is padding."""
    job = job_at(jobs)
    words, lanes, held = np.empty((4, LANES), np.uint32), np.empty(_WIDE, np.float32), np.zeros(2, np.int64)
    buffer, scratch = _buffer(job.widest), np.empty(job.widest + _WIDE, np.float32)
    while True:
        first, last = next_chunk(jobs)
        if first >= last:
            return
        for number in range(first, last):
            _, width, _, length, square = _example(job, number)
            for row in range(job.heads * width):
                start = job.heads * square + row * width
                scores = carray(floats_at(job.scores + 4 * start), (width,))
                dropped = carray(floats_at(job.dropped + 4 * start), (width,))
                if row % width >= length:
                    scores[:] = _ZERO
                    dropped[:] = _ZERO
                    continue
                place = _factors(job, start, width, words, buffer, held)
                _softmax_row(scores, dropped, buffer, place, length, scratch, lanes)


@njit(error_model="numpy", inline="always")  # a call with arrays costs more than a short row
def _softmax_row(scores, dropped, factors, place, length, row, lanes):
    """``row`` is scratch: whole vectors, so that no loop with an exponential has a rest of single entries."""
    padded = (length + _WIDE - 1) // _WIDE * _WIDE
    for j in range(length):
        row[j] = scores[j]
    for j in range(length, padded):
        row[j] = scores[0]
    largest = _largest(row, padded, lanes)
    for j in range(padded):
        row[j] = _exp(row[j] - largest)
    for j in range(length, padded):
        row[j] = _ZERO
    inverse = _ONE / _sum(row, padded)
    for j in range(length):
        probability = row[j] * inverse
        scores[j] = probability
        dropped[j] = probability * factors[place + j]
    for j in range(length, len(scores)):
        scores[j] = _ZERO
        dropped[j] = _ZERO


@region(*_HEADS, *_SCORES, ("gradient", np.int64))
def softmax_backward(jobs):
    """Gradient of the dropped probabilities to that of the scores, in place: q g - p sum(q g), q the dropped ones."""
    job = job_at(jobs)
    products = np.empty(job.widest, np.float32)
    while True:
        first, last = next_chunk(jobs)
        if first >= last:
            return
        for number in range(first, last):
            _, width, _, _, square = _example(job, number)
            for row in range(job.heads * width):
                at = 4 * (job.heads * square + row * width)
                probabilities = carray(floats_at(job.scores + at), (width,))
                dropped = carray(floats_at(job.dropped + at), (width,))
                gradient = carray(floats_at(job.gradient + at), (width,))
                for j in range(width):
                    products[j] = dropped[j] * gradient[j]
                total = _sum(products, width)
                for j in range(width):
                    gradient[j] = products[j] - probabilities[j] * total


_NORM = (
    ("width", np.int64),  # D
    ("weight", np.int64),
    ("normed", np.int64),  # (n, D) before weight and bias
    ("inverse", np.int64),  # (n,) 1 / standard deviation
    ("mask", np.int64),  # (n, D) uint8, 1 where dropout kept; 0: no dropout
)


_BIASES = (("x_bias", np.int64), ("bias", np.int64))  # (D,) each, the first may be 0: there is none


@region(*_NORM, *_DROPOUT, *_BIASES, ("eps", np.float32), ("x", np.int64), ("y", np.int64), ("out", np.int64))
def norm_forward(jobs):
    """Layer norm of dropout(x + x_bias) + y, row by row."""
    job = job_at(jobs)
    d, n = job.width, job.blocks
    weight, bias = carray(floats_at(job.weight), (d,)), carray(floats_at(job.bias), (d,))
    words, held = np.empty((4, LANES), np.uint32), np.zeros(2, np.int64)
    buffer, squares, x_bias = _buffer(d), np.empty(d, np.float32), np.zeros(d, np.float32)
    if job.x_bias != 0:
        x_bias[:] = carray(floats_at(job.x_bias), (d,))
    inverses = carray(floats_at(job.inverse), (n,))
    count = np.float32(d)
    while True:
        first, last = next_chunk(jobs)
        if first >= last:
            return
        for row in range(first, last):
            at = row * d
            x, y = carray(floats_at(job.x + 4 * at), (d,)), carray(floats_at(job.y + 4 * at), (d,))
            out, normed = carray(floats_at(job.out + 4 * at), (d,)), carray(floats_at(job.normed + 4 * at), (d,))
            place = _factors(job, at, d, words, buffer, held)
            factors = buffer[place : place + d]
            for j in range(d):
                normed[j] = (x[j] + x_bias[j]) * factors[j] + y[j]
            if job.mask != 0:
                mask = carray(bytes_at(job.mask + at), (d,))
                for j in range(d):
                    mask[j] = factors[j] != _ZERO
            mean = _sum(normed, d) / count
            for j in range(d):
                normed[j] = normed[j] - mean
                squares[j] = normed[j] * normed[j]
            inverse = _ONE / np.sqrt(_sum(squares, d) / count + job.eps)
            inverses[row] = inverse
            for j in range(d):
                normed[j] = normed[j] * inverse
                out[j] = normed[j] * weight[j] + bias[j]


@region(*_NORM, ("kept", np.float32), ("gradient", np.int64), ("dx", np.int64), ("dy", np.int64), ("sums", np.int64))
def norm_backward(jobs):
    """Gradients of x and y, and of weight, bias and x_bias a sum for each chunk of rows, (chunks, 3, D)."""
    job = job_at(jobs)
    d, n = job.width, job.blocks
    weight, inverses = carray(floats_at(job.weight), (d,)), carray(floats_at(job.inverse), (n,))
    scaled, products = np.empty(d, np.float32), np.empty(d, np.float32)
    count = np.float32(d)
    while True:
        first, last = next_chunk(jobs)
        if first >= last:
            return
        sums = carray(floats_at(job.sums + 12 * d * (first // job.chunk)), (3, d))
        d_weight, d_bias, d_x_bias = sums[0], sums[1], sums[2]
        sums[:] = _ZERO
        for row in range(first, last):
            at = 4 * row * d
            gradient, normed = carray(floats_at(job.gradient + at), (d,)), carray(floats_at(job.normed + at), (d,))
            dx, dy = carray(floats_at(job.dx + at), (d,)), carray(floats_at(job.dy + at), (d,))
            for j in range(d):
                d_weight[j] += gradient[j] * normed[j]
                d_bias[j] += gradient[j]
                scaled[j] = gradient[j] * weight[j]
                products[j] = scaled[j] * normed[j]
            mean, slope, inverse = _sum(scaled, d) / count, _sum(products, d) / count, inverses[row]
            for j in range(d):
                dy[j] = ((scaled[j] - mean) - normed[j] * slope) * inverse
            if job.mask != 0:
                mask = carray(bytes_at(job.mask + row * d), (d,))
                for j in range(d):
                    dx[j] = dy[j] * (job.kept * np.float32(mask[j]))
            for j in range(d):
                d_x_bias[j] += dx[j]  # without dropout dx is dy
