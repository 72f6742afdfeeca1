"""Attention of each example's first token on the CPU: keys and values are read where they lie.

Legend: as in :mod:`module.kernels.cpu_layers`. Probabilities lie by example, head and key, n_tokens H of them.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, misc, no-any-return"
# mypy: disable-error-code="attr-defined, call-arg"

import numpy as np
from numba import carray

from ..noise import LANES
from .compiled import floats_at, inlined, integers_at, job_at, next_chunk, region
from .cpu_layers import _DROPOUT, _HEADS, _WIDE, _ZERO, _buffer, _example, _factors, _softmax_row, _sum

_FIRST = (
    *_HEADS,
    ("own", np.int64),  # (B, 2) int64, by row of the table of examples: the example, and its first entry of the mask
    ("widest", np.int64),
    ("scale", np.float32),  # of the scores
    ("query", np.int64),  # (B, D)
    ("key", np.int64),  # (n_tokens, D)
    ("value", np.int64),
    ("probabilities", np.int64),
    ("dropped", np.int64),  # probabilities times dropout's factors
)


@inlined
def _rows(place, job, token, length):
    """An example's rows of (n_tokens, D), (length, H, d)."""
    size = job.head_size
    return carray(floats_at(place + 4 * token * job.heads * size), (length, job.heads, size))


@region(*_FIRST, *_DROPOUT, ("out", np.int64))
def first_forward(jobs):
    """Queries of the first tokens to their contexts, (B, D)."""
    job = job_at(jobs)
    own, size = carray(integers_at(job.own), (job.blocks, 2)), job.head_size
    words, lanes, held = np.empty((4, LANES), np.uint32), np.empty(_WIDE, np.float32), np.zeros(2, np.int64)
    buffer, scratch = _buffer(job.widest), np.empty(job.widest + _WIDE, np.float32)
    scaled, products = np.empty(size, np.float32), np.empty(size, np.float32)
    while True:
        first, last = next_chunk(jobs)
        if first >= last:
            return
        for number in range(first, last):
            _, width, token, length, _ = _example(job, number)
            query, out = _rows(job.query, job, own[number, 0], 1)[0], _rows(job.out, job, own[number, 0], 1)[0]
            keys, values = _rows(job.key, job, token, length), _rows(job.value, job, token, length)
            for head in range(job.heads):
                at = 4 * (job.heads * token + head * length)
                scores = carray(floats_at(job.probabilities + at), (length,))
                dropped = carray(floats_at(job.dropped + at), (length,))
                for c in range(size):
                    scaled[c] = query[head, c] * job.scale
                for j in range(length):
                    for c in range(size):
                        products[c] = scaled[c] * keys[j, head, c]
                    scores[j] = _sum(products, size)
                place = _factors(job, own[number, 1] + head * width, length, words, buffer, held)
                _softmax_row(scores, dropped, buffer, place, length, scratch, lanes)
                for c in range(size):
                    out[head, c] = _ZERO
                for j in range(length):
                    for c in range(size):
                        out[head, c] += dropped[j] * values[j, head, c]


@region(*_FIRST, ("gradient", np.int64), ("d_query", np.int64), ("d_key", np.int64), ("d_value", np.int64))
def first_backward(jobs):
    """Gradient of the contexts to those of queries, (B, D), keys and values, (n_tokens, D)."""
    job = job_at(jobs)
    own, size = carray(integers_at(job.own), (job.blocks, 2)), job.head_size
    products, of_dropped = np.empty(max(size, job.widest), np.float32), np.empty(job.widest, np.float32)
    while True:
        first, last = next_chunk(jobs)
        if first >= last:
            return
        for number in range(first, last):
            _, _, token, length, _ = _example(job, number)
            example = own[number, 0]
            query, gradient = _rows(job.query, job, example, 1)[0], _rows(job.gradient, job, example, 1)[0]
            keys, values = _rows(job.key, job, token, length), _rows(job.value, job, token, length)
            d_keys, d_values = _rows(job.d_key, job, token, length), _rows(job.d_value, job, token, length)
            d_query = _rows(job.d_query, job, example, 1)[0]
            for head in range(job.heads):
                at = 4 * (job.heads * token + head * length)
                probabilities = carray(floats_at(job.probabilities + at), (length,))
                dropped = carray(floats_at(job.dropped + at), (length,))
                for j in range(length):
                    for c in range(size):
                        products[c] = gradient[head, c] * values[j, head, c]
                        d_values[j, head, c] = dropped[j] * gradient[head, c]
                    of_dropped[j] = _sum(products, size) * dropped[j]
                total = _sum(of_dropped, length)
                for c in range(size):
                    d_query[head, c] = _ZERO
                for j in range(length):
                    slope = (of_dropped[j] - probabilities[j] * total) * job.scale
                    for c in range(size):
                        d_query[head, c] += slope * keys[j, head, c]
                        d_keys[j, head, c] = slope * query[head, c]
