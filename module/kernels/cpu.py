"""The step on the CPU: numba loops over blocks of 1,024 entries."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc, no-any-return"
# mypy: disable-error-code="attr-defined, call-arg"

import numpy as np
from numba import carray, float32, float64, from_dtype, uint32

from ..noise import BLOCK, LANES, WORD
from .compiled import doubles_at, floats_at, inlined, job_at, next_chunk, pointer_to, prefetch, region
from .cpu_stream import normals_block, philox_block
from .rows import ROW, RULE_MTDNN, RULE_NONE, count_blocks

CHUNK = 64  # blocks that a thread takes at a time
_ZERO = np.float32(0.0)
_rows_at = pointer_to(from_dtype(ROW))
_TABLE = (("rows", np.int64), ("n_rows", np.int64))


@inlined
def _table(job):
    return carray(_rows_at(job.rows), (job.n_rows,))


@inlined
def _prefetch_block(row, start):
    """The arrays of a block, so that memory works while its predecessor's noise is computed."""
    stop = min(start + BLOCK, row.size)
    for j in range(start, stop, 16):  # 64 bytes
        prefetch(row.theta + 4 * j)
        prefetch(row.gradient + row.gradient_stride * j)
        prefetch(row.momentum + 4 * j)
        prefetch(row.infinity_norm + 4 * j)
        prefetch(row.sensitivity + 4 * j)


@inlined
def _row_of(rows, block):
    low, high = 0, len(rows) - 1
    while low < high:
        middle = (low + high + 1) // 2
        if rows[middle].first_block <= block:
            low = middle
        else:
            high = middle - 1
    return low


@inlined
def _advance(rows, i, block):
    """The row of a block that is row i's or a later one's."""
    while i + 1 < len(rows) and rows[i + 1].first_block <= block:
        i += 1
    return i


@inlined
def _sum_block(row, start, products):
    n = min(BLOCK, row.size - start)
    gradient = carray(floats_at(row.gradient + row.gradient_stride * start), (n,))
    if row.track == 1:
        theta = carray(floats_at(row.theta + 4 * start), (n,))
        for j in range(n):
            products[j] = abs(theta[j] * (gradient[j] * row.inverse_scale))
    else:
        for j in range(n):
            products[j] = gradient[j] * _ZERO
    return _halved(products, n)


@inlined
def _square_block(row, start, products):
    n, inverse = min(BLOCK, row.size - start), row.inverse_scale
    gradient = carray(floats_at(row.gradient + row.gradient_stride * start), (n,))
    for j in range(n):
        scaled = gradient[j] * inverse
        products[j] = scaled * scaled
    return _halved(products, n)


@inlined
def _halved(products, n):
    """Sum of the first n numbers of a block."""
    for j in range(n, BLOCK):
        products[j] = _ZERO
    width = BLOCK // 2  # halving: the same tree whatever the vector width
    while width >= 1:
        for j in range(width):
            products[j] += products[j + width]
        width //= 2
    return float64(products[0])


@region(*_TABLE, ("sums", np.int64), ("squares", np.int64))
def _partial_sums(jobs):
    """Sum of |theta g| (tracked rows) or of 0 g (others: NaN where g is not finite) of each block, and of g^2."""
    job = job_at(jobs)
    rows, sums = _table(job), carray(doubles_at(job.sums), (job.blocks,))
    squares = carray(doubles_at(job.squares), (job.blocks,))
    products = np.empty(BLOCK, np.float32)
    while True:
        first, last = next_chunk(jobs)
        if first >= last:
            return
        i = _row_of(rows, first)
        for block in range(first, last):
            i = _advance(rows, i, block)
            start = (block - rows[i].first_block) * BLOCK
            sums[block] = _sum_block(rows[i], start, products)
            if job.squares != 0:
                squares[block] = _square_block(rows[i], start, products)


@inlined
def _update_sensitivity(row, start, n, factor):
    theta = carray(floats_at(row.theta + 4 * start), (n,))
    gradient = carray(floats_at(row.gradient + row.gradient_stride * start), (n,))
    sensitivity = carray(floats_at(row.sensitivity + 4 * start), (n,))
    beta, one_minus_beta, eps, inverse = row.beta, row.one_minus_beta, row.sensitivity_eps, row.inverse_scale
    for j in range(n):
        now = abs(theta[j] * (gradient[j] * inverse))
        average = beta * sensitivity[j] + one_minus_beta * now
        sensitivity[j] = average
        factor[j] = abs(now - average) / (average + eps)


@inlined
def _update_parameters(row, start, n, factor, direction):
    theta = carray(floats_at(row.theta + 4 * start), (n,))
    gradient = carray(floats_at(row.update_gradient + row.gradient_stride * start), (n,))
    momentum = carray(floats_at(row.momentum + 4 * start), (n,))
    norm = carray(floats_at(row.infinity_norm + 4 * start), (n,))
    beta1, one_minus_beta1, beta2 = row.beta1, row.one_minus_beta1, row.beta2
    eps, decay, step_size, inverse = row.eps, row.weight_decay, row.step_size, row.inverse_scale
    if row.rule == RULE_MTDNN:
        for j in range(n):
            g = gradient[j] * inverse
            m = beta1 * momentum[j] + one_minus_beta1 * g
            u = max(beta2 * norm[j], abs(g) + eps)
            momentum[j] = m
            norm[j] = u
            direction[j] = m / (u + eps) + decay * theta[j]
    else:
        for j in range(n):
            g = gradient[j] * inverse + decay * theta[j]
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


@inlined
def _subtract_noise(row, start, n, z, mask):
    theta = carray(floats_at(row.theta + 4 * start), (n,))
    sensitivity = carray(floats_at(row.sensitivity + 4 * start), (n,))
    mean, eps, cap, amplitude = row.mean, row.sensitivity_eps, row.max_ratio, row.amplitude
    upper, lower, threshold = row.upper, row.lower, row.mask_threshold
    for j in range(n):
        ratio = mean / (sensitivity[j] + eps)
        capped = cap if ratio > cap else ratio
        perturbed = (mask[j] < threshold) & (sensitivity[j] < upper) & (ratio >= lower)
        noisy = theta[j] - (amplitude * capped) * z[j]
        theta[j] = noisy if perturbed else theta[j]


@inlined
def _pats_adamax(row, start, n, z, mask):
    """The three functions above in one loop, for their most frequent case: the same operations in the same order."""
    theta = carray(floats_at(row.theta + 4 * start), (n,))
    gradient = carray(floats_at(row.gradient + row.gradient_stride * start), (n,))
    momentum = carray(floats_at(row.momentum + 4 * start), (n,))
    norm = carray(floats_at(row.infinity_norm + 4 * start), (n,))
    sensitivity = carray(floats_at(row.sensitivity + 4 * start), (n,))
    beta1, one_minus_beta1, beta2 = row.beta1, row.one_minus_beta1, row.beta2
    adamax_eps, decay, step_size = row.eps, row.weight_decay, row.step_size
    beta, one_minus_beta = row.beta, row.one_minus_beta
    mean, eps, cap, amplitude = row.mean, row.sensitivity_eps, row.max_ratio, row.amplitude
    upper, lower, threshold, inverse = row.upper, row.lower, row.mask_threshold, row.inverse_scale
    for j in range(n):
        g = gradient[j] * inverse
        s = beta * sensitivity[j] + one_minus_beta * abs(theta[j] * g)
        m = beta1 * momentum[j] + one_minus_beta1 * g
        u = max(beta2 * norm[j], abs(g) + adamax_eps)
        sensitivity[j] = s
        momentum[j] = m
        norm[j] = u
        stepped = theta[j] - step_size * (m / (u + adamax_eps) + decay * theta[j])
        ratio = mean / (s + eps)
        capped = cap if ratio > cap else ratio
        perturbed = (mask[j] < threshold) & (s < upper) & (ratio >= lower)
        noisy = stepped - (amplitude * capped) * z[j]
        theta[j] = noisy if perturbed else stepped


@inlined
def _update_block(row, block, words, z, mask, factor, direction):
    start = block * BLOCK
    n = min(BLOCK, row.size - start)
    if row.noise == 1:
        _prefetch_block(row, start)
        _draw(row, block, min(LANES, n), words, z, mask)
        if row.track == 1 and row.scale == 0 and row.rule == RULE_MTDNN and row.update_gradient == row.gradient:
            _pats_adamax(row, start, n, z, mask)
            return
    if row.track == 1:
        _update_sensitivity(row, start, n, factor)
    if row.rule != RULE_NONE:
        _update_parameters(row, start, n, factor, direction)
    if row.noise == 1:
        _subtract_noise(row, start, n, z, mask)


@inlined
def _draw(row, block, lanes, words, z, mask):
    w0, w1, w2, w3 = words[0], words[1], words[2], words[3]
    id_low, id_high = uint32(row.identity & WORD), uint32((row.identity >> 32) & WORD)
    philox_block(uint32(block), row.step, id_low, id_high, row.key_low, row.key_high, lanes, w0, w1, w2, w3)
    normals_block(w0, w1, lanes, 0, z, mask)
    normals_block(w2, w3, lanes, 2 * LANES, z, mask)


@region(*_TABLE)
def _update_blocks(jobs):
    """Track, scale, update and perturb every entry of every block."""
    rows = _table(job_at(jobs))
    words = np.empty((4, LANES), np.uint32)
    z, mask = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.int32)
    factor, direction = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
    while True:
        first, last = next_chunk(jobs)
        if first >= last:
            return
        i = _row_of(rows, first)
        for block in range(first, last):
            i = _advance(rows, i, block)
            _update_block(rows[i], block - rows[i].first_block, words, z, mask, factor, direction)


_SCALARS = (*_TABLE, ("steps", np.int64), ("means", np.int64))


@region(*_SCALARS)
def _load_scalars(jobs):
    job = job_at(jobs)
    rows = _table(job)
    steps, means = carray(doubles_at(job.steps), (len(rows),)), carray(doubles_at(job.means), (len(rows),))
    for i in range(len(rows)):
        steps[i] = carray(floats_at(rows[i].step_at), (1,))[0]
        means[i] = carray(doubles_at(rows[i].mean_at), (1,))[0] if rows[i].mean_at != 0 else 0.0


@region(*_SCALARS)
def _store_scalars(jobs):
    job = job_at(jobs)
    rows = _table(job)
    steps, means = carray(doubles_at(job.steps), (len(rows),)), carray(doubles_at(job.means), (len(rows),))
    for i in range(len(rows)):
        carray(floats_at(rows[i].step_at), (1,))[0] = float32(steps[i])
        if rows[i].mean_at != 0:
            carray(doubles_at(rows[i].mean_at), (1,))[0] = means[i]


def load_scalars(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Read the tensors' steps and mean sensitivities, float64 (rows,); 0 where there is no sensitivity."""
    steps, means = np.empty(len(rows)), np.empty(len(rows))
    _load_scalars(1, 1, rows.ctypes.data, len(rows), steps.ctypes.data, means.ctypes.data)
    return steps, means


def store_scalars(rows: np.ndarray, steps: np.ndarray, means: np.ndarray) -> None:
    """Write what :func:`load_scalars` reads; float64 (rows,) each."""
    steps, means = np.ascontiguousarray(steps, np.float64), np.ascontiguousarray(means, np.float64)
    _store_scalars(1, 1, rows.ctypes.data, len(rows), steps.ctypes.data, means.ctypes.data)


def sum_rows(rows: np.ndarray, squares: np.ndarray | None = None) -> np.ndarray:
    """First pass: per row the sum of ``|theta g|`` in float64; NaN or infinite where a gradient is not finite.

    Rows without ``track`` give 0 (or NaN). Nothing else is written. The sum is over fixed blocks in a fixed order.

    Args:
        rows: The table.
        squares: float64 (rows,), to be filled with the sums of ``g^2``; None: they are not needed.
    """
    wanted = 1 if squares is None else 2
    blocks = np.empty((wanted, count_blocks(rows)), np.float64)
    places = [part.ctypes.data for part in blocks] + [0] * (2 - wanted)
    _partial_sums(blocks.shape[1], CHUNK, rows.ctypes.data, len(rows), *places)
    if not len(rows):
        return blocks[0]
    if squares is not None:
        squares[:] = np.add.reduceat(blocks[1], rows["first_block"])
    sums: np.ndarray = np.add.reduceat(blocks[0], rows["first_block"])
    return sums


def update_rows(rows: np.ndarray) -> None:
    """Second pass: everything else, in place."""
    _update_blocks(count_blocks(rows), CHUNK, rows.ctypes.data, len(rows))
