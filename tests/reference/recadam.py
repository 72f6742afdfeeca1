"""RecAdam in the order of its authors' code, around any optimizer's direction, in float64."""

import numpy as np


def annealed(kind, t, k, t0, w):
    """lambda(t)."""
    if kind == "sigmoid":
        return w / (1 + np.exp(-k * (t - t0)))
    return w * min(1, t / t0) if kind == "linear" else w


def recadam_step(theta, theta0, d, eta, lam, w, gamma, decay):
    """theta after one step; d: the optimizer's direction without weight decay, which comes last."""
    theta = theta - lam * eta * d
    theta = theta - eta * (w - lam) * gamma * (theta - theta0)
    return theta - eta * decay * theta
