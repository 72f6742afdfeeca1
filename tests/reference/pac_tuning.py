"""PAC-tuning's bound and its step, in float64 and the paper's symbols.

theta, theta0, p, tau, g: dicts of arrays; b: dict of numbers, one per tensor; K given at rising widths of the prior.
"""

import numpy as np


def kl(theta, theta0, p, b):
    """KL of prod_j N(theta_j, exp(2 p_j)) from prod_j N(theta0_j, exp(2 b_l)), by the text-book formula per entry."""
    total = 0.0
    for n in theta:
        variance, prior = np.exp(2 * p[n]), np.exp(2 * b[n])
        total += (np.log(prior / variance) / 2 + (variance + (theta[n] - theta0[n]) ** 2) / (2 * prior) - 0.5).sum()
    return total


def k_at(width, levels, values):
    """K and its slope: straight lines between the points, flat before them, straight on behind them."""
    values = np.maximum.accumulate(values)
    if width <= levels[0]:
        return values[0], 0.0
    i = min(np.searchsorted(levels, width) - 1, len(levels) - 2)
    slope = (values[i + 1] - values[i]) / (levels[i + 1] - levels[i])
    return values[i] + slope * (width - levels[i]), slope


def authors_k_at(width, levels, values):
    """fun_K_auto of the authors' code, and its slope."""
    values = np.maximum.accumulate(values)
    slope = bend = (values[1] - values[0]) / (levels[1] - levels[0])
    k, total = values[0] + max(width - levels[0], 0.0) * slope, slope * (width > levels[0])
    for i in range(len(levels) - 2):
        bend = -bend + (values[i + 2] - values[i + 1]) / (levels[i + 2] - levels[i + 1])
        k += max(width - levels[i + 1], 0.0) * bend
        total += bend * (width > levels[i + 1])
    return k, total


def smallest_k(losses, gamma):
    """By bisection: the least K with mean exp(gamma (mean loss - loss)) <= exp(3 gamma^2 K^2 / 2)."""
    left = np.mean(np.exp(gamma * (losses.mean() - losses)))
    low, high = 0.0, 100.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (low, middle) if np.log(left) <= 1.5 * gamma**2 * middle**2 else (middle, high)
    return high


def bound(theta, theta0, p, b, levels, values, gamma, m):
    k, _ = k_at(np.exp(np.mean(list(b.values()))), levels, values)
    return 1.5 * gamma * k**2 + (kl(theta, theta0, p, b) + 10 + 3 * len(b)) / (gamma * m)


def bound_gradients(theta, theta0, p, b, levels, values, gamma, m):
    """Of L_PAC with respect to theta, p and b."""
    width = np.exp(np.mean(list(b.values())))
    k, slope = k_at(width, levels, values)
    of_theta = {n: (theta[n] - theta0[n]) / np.exp(2 * b[n]) / (gamma * m) for n in theta}
    of_p = {n: (np.exp(2 * p[n]) / np.exp(2 * b[n]) - 1) / (gamma * m) for n in theta}
    of_b = {
        n: np.sum(1 - (np.exp(2 * p[n]) + (theta[n] - theta0[n]) ** 2) / np.exp(2 * b[n])) / (gamma * m)
        + 3 * gamma * k * slope * width / len(b)
        for n in theta
    }
    return of_theta, of_p, of_b


def new_state(theta0, heads):
    """The authors' start: one value below the head, 2 log mean|w|, and one for the head, log mean|w|."""
    means = {
        head: np.mean(np.concatenate([np.abs(w).ravel() for n, w in theta0.items() if (n in heads) == head]))
        for head in (False, True)
    }
    first = {n: (1 if n in heads else 2) * np.log(means[n in heads]) for n in theta0}
    return {
        "t": 0,
        "p": {n: np.full(w.shape, first[n]) for n, w in theta0.items()},
        "b": dict(first),
        "m": {(kind, n): 0.0 for kind in "pb" for n in theta0},
        "v": {(kind, n): 0.0 for kind in "pb" for n in theta0},
    }


def stage1_step(theta, theta0, state, tau, gradient, lr, levels, values, gamma, m, heads, head_lr):
    """One step of all three: gradient descent on theta, Adam on p and b. Changes the state."""
    p, b = state["p"], state["b"]
    g = gradient({n: theta[n] + np.exp(p[n]) * tau[n] for n in theta})
    of_theta, of_p, of_b = bound_gradients(theta, theta0, p, b, levels, values, gamma, m)
    state["t"] += 1
    t = state["t"]
    for n in theta:
        rate = max(50 * 0.9 ** (t // 10), 1) * head_lr if n in heads else 0.1
        of_p[n] = of_p[n] + g[n] * tau[n] * np.exp(p[n])
        for kind, value, d in (("p", p, of_p[n]), ("b", b, of_b[n])):
            first = state["m"][kind, n] = 0.9 * state["m"][kind, n] + 0.1 * d
            second = state["v"][kind, n] = 0.999 * state["v"][kind, n] + 0.001 * d**2
            value[n] = value[n] - rate * (first / (1 - 0.9**t)) / (np.sqrt(second / (1 - 0.999**t)) + 1e-8)
    return {n: theta[n] - lr * (g[n] + of_theta[n]) for n in theta}
