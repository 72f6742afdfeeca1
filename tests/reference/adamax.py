"""Adamax by MT-DNN v0.2's rule and by torch's, in float64."""

import numpy as np


def new_state(theta):
    return {"t": 0, "m": np.zeros_like(theta), "u": np.zeros_like(theta)}


def direction(theta, g, state, beta1, beta2, eps, w, rule):
    """d_j of one step; the step itself is theta - eta * d. Changes the state."""
    state["t"] += 1
    if rule == "torch":
        g = g + w * theta
    state["m"] = beta1 * state["m"] + (1 - beta1) * g
    state["u"] = np.maximum(beta2 * state["u"], np.abs(g) + eps)
    if rule == "torch":
        return state["m"] / (state["u"] * (1 - beta1 ** state["t"]))
    return state["m"] / (state["u"] + eps) + w * theta


def adamax_step(theta, g, state, eta, beta1=0.9, beta2=0.999, eps=1e-6, w=0.01, rule="mtdnn"):
    return theta - eta * direction(theta, g, state, beta1, beta2, eps, w, rule)
