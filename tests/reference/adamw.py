"""AdamW as torch has it (bias correction inside the root's scale, decoupled decay), in float64."""

import numpy as np


def new_state(theta):
    return {"t": 0, "m": np.zeros_like(theta), "v": np.zeros_like(theta)}


def direction(g, state, beta1=0.9, beta2=0.999, eps=1e-8):
    """m-hat / (sqrt(v-hat) + eps). Changes the state."""
    state["t"] += 1
    state["m"] = beta1 * state["m"] + (1 - beta1) * g
    state["v"] = beta2 * state["v"] + (1 - beta2) * g * g
    m_hat = state["m"] / (1 - beta1 ** state["t"])
    v_hat = state["v"] / (1 - beta2 ** state["t"])
    return m_hat / (np.sqrt(v_hat) + eps)


def adamw_step(theta, g, state, eta, w=0.01, **rule):
    return theta * (1 - eta * w) - eta * direction(g, state, **rule)
