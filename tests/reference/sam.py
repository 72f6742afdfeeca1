"""SAM and ASAM on plain gradient descent, in float64; w, g and e are dicts of arrays."""

import numpy as np


def ascent(w, g, rho, *, adaptive=False, eta=0.01, normalized=()):
    """SAM: e = rho g / ||g||. ASAM: e = rho T^2 g / ||T g||, T = |w| + eta on the tensors of ``normalized``, else 1."""
    t = {n: np.abs(w[n]) + eta if adaptive and n in normalized else np.ones_like(w[n]) for n in w}
    norm = np.sqrt(sum(((t[n] * g[n]) ** 2).sum() for n in w))
    return {n: rho * t[n] ** 2 * g[n] / norm for n in w}


def sam_step(w, gradient, lr, rho, **asam):
    e = ascent(w, gradient(w), rho, **asam)
    g = gradient({n: w[n] + e[n] for n in w})
    return {n: w[n] - lr * g[n] for n in w}
