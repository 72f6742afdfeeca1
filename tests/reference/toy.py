"""A small classifier of token sequences and its gradient, example by example, in float64.

z = V (m * mean_t tanh(W x_t + c)) + b,  x_t = E[token_t] + delta_t,  m a dropout mask's factors.
"""

import numpy as np


def hidden(theta, tokens, delta):
    """x (T, E) and tanh of the first layer (T, H) of one example."""
    x = theta["E"][tokens] + delta
    return x, np.tanh(x @ theta["W"].T + theta["c"])


def logits(theta, examples, masks, deltas):
    """(B, K); examples and deltas are lists of (T_i,) and (T_i, E), masks (B, H)."""
    rows = []
    for tokens, m, delta in zip(examples, masks, deltas, strict=True):
        _, h = hidden(theta, tokens, delta)
        rows.append(theta["V"] @ (m * h.mean(0)) + theta["b"])
    return np.array(rows)


def gradient(theta, examples, masks, deltas, dz, embeddings=True):
    """Of sum_i <dz_i, z_i>: by parameter, and by example's delta. Without embeddings E gets none."""
    g = {name: np.zeros_like(value) for name, value in theta.items()}
    g_deltas = []
    for tokens, m, delta, d in zip(examples, masks, deltas, dz, strict=True):
        x, h = hidden(theta, tokens, delta)
        pooled = m * h.mean(0)
        g["V"] += np.outer(d, pooled)
        g["b"] += d
        da = (m * (d @ theta["V"])) / len(tokens) * (1.0 - h**2)  # (T, H)
        g["W"] += da.T @ x
        g["c"] += da.sum(0)
        dx = da @ theta["W"]
        if embeddings:
            np.add.at(g["E"], tokens, dx)
        g_deltas.append(dx)
    return g, g_deltas


def zeros(theta, examples):
    return [np.zeros((len(tokens), theta["E"].shape[1])) for tokens in examples]


def add(*gradients):
    return {name: sum(g[name] for g in gradients) for name in gradients[0]}


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def task_loss(z, labels, regression=False):
    """Sum over the examples, and its gradient by z."""
    if regression:
        error = z[:, 0] - labels
        return (error**2).sum(), 2.0 * error[:, None]
    p, rows = softmax(z), np.arange(len(labels))
    one = np.zeros_like(p)
    one[rows, labels] = 1.0
    return -np.log(p[rows, labels]).sum(), p - one


def distance(z, y, regression=False):
    """KL(p || q) + KL(q || p), or the squared difference, summed over the examples; its gradients by z and by y."""
    if regression:
        return ((z - y) ** 2).sum(), 2.0 * (z - y), 2.0 * (y - z)
    p, q = softmax(z), softmax(y)
    r = np.log(p) - np.log(q)
    dz = p * (r - (p * r).sum(-1, keepdims=True)) + p - q
    dy = q * ((q * r).sum(-1, keepdims=True) - r) + q - p
    return (p * r).sum() - (q * r).sum(), dz, dy
