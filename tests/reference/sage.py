"""SAGE on Adamax as the authors' code has it, in float64."""

import numpy as np

from tests.reference import adamax


def new_state(theta):
    return {**adamax.new_state(theta), "s_bar": np.zeros_like(theta)}


def factor(theta, g, state, beta, eps):
    """|I - I_bar| / (I_bar + eps); I_bar already holds the current step. Changes the state."""
    s = np.abs(theta * g)
    state["s_bar"] = beta * state["s_bar"] + (1 - beta) * s
    return np.abs(s - state["s_bar"]) / (state["s_bar"] + eps)


def sage_step(theta, g, state, eta, beta=0.75, s_eps=1e-12, beta1=0.9, beta2=0.999, eps=1e-6, w=0.01, rule="mtdnn"):
    f = factor(theta, g, state, beta, s_eps)
    return theta - eta * f * adamax.direction(theta, g, state, beta1, beta2, eps, w, rule)
