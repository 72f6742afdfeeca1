"""Attention of one example and head, in float64: softmax(scale q k^T) with dropout of the probabilities."""

import numpy as np


def softmax(s):
    """Rows sum to one."""
    e = np.exp(s - s.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def attention(q, k, v, scale, r):
    """q, k and v (L, d), dropout's factors r (L, L) -> probabilities P, output O (L, d)."""
    p = softmax(scale * q @ k.T)
    return p, (p * r) @ v


def attention_gradients(q, k, v, scale, r, g):
    """Gradients of sum(g O) for q, k and v."""
    p, _ = attention(q, k, v, scale, r)
    dp = (g @ v.T) * r
    ds = p * (dp - (p * dp).sum(-1, keepdims=True))
    return scale * ds @ k, scale * ds.T @ q, (p * r).T @ g
