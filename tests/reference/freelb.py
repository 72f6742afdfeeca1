"""FreeLB's gradient on the toy network, example by example, in float64."""

import numpy as np

from tests.reference import toy


def start(uniform, magnitude):
    """delta_0 of one example from U(0, 1) draws (T, E)."""
    length, size = uniform.shape
    return (2.0 * uniform - 1.0) * magnitude / np.sqrt(length * size)


def ascend(delta, g, alpha, eps):
    """Pi_{|delta| <= eps}(delta + alpha g / |g|), Frobenius norms; eps None: no projection."""
    norm = np.linalg.norm(g)
    if norm > 0:
        delta = delta + alpha * g / norm
    size = np.linalg.norm(delta)
    return delta * eps / size if eps is not None and size > eps else delta


def gradient(theta, examples, labels, mask, deltas, K, plus_one, alpha, eps):
    """Mean over the passes of the gradient of the mean loss, and the deltas of each pass."""
    n, total, path = K + plus_one, None, []
    for t in range(n):
        path.append(deltas)
        z = toy.logits(theta, examples, mask, deltas)
        _, dz = toy.task_loss(z, labels)
        g, g_deltas = toy.gradient(theta, examples, mask, deltas, dz / len(examples))
        total = g if total is None else toy.add(total, g)
        if t < n - 1:
            deltas = [ascend(d, gd, alpha, eps) for d, gd in zip(deltas, g_deltas, strict=True)]
    return {name: g / n for name, g in total.items()}, path
