"""Layer normalisation (Ba, Kiros and Hinton, 2016) of a = r x + y, in float64; r is dropout's factors."""

import numpy as np


def layer_norm(x, y, r, gain, b, eps):
    """x, y and r (n, D) -> ((a - mu) / sigma, output, sigma)."""
    a = r * x + y
    mu = a.mean(-1, keepdims=True)
    sigma = np.sqrt(((a - mu) ** 2).mean(-1, keepdims=True) + eps)
    normed = (a - mu) / sigma
    return normed, gain * normed + b, sigma


def layer_norm_gradients(x, y, r, gain, b, eps, g):
    """Gradients of sum(g output) for x, y, gain and b."""
    normed, _, sigma = layer_norm(x, y, r, gain, b, eps)
    h = g * gain
    da = (h - h.mean(-1, keepdims=True) - normed * (h * normed).mean(-1, keepdims=True)) / sigma
    return r * da, da, (g * normed).sum(0), g.sum(0)
