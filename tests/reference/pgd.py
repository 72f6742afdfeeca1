"""Perturbed gradient descent and noise stability optimization (NSO), in float64; w and u are dicts of arrays."""


def pgd_step(w, gradient, u, lr, two_point=False):
    """w - lr g(w + u), or w - lr [g(w + u) + g(w - u)] / 2; tensors that u does not hold get no noise."""
    g = gradient({n: w[n] + u.get(n, 0.0) for n in w})
    if two_point:
        other = gradient({n: w[n] - u.get(n, 0.0) for n in w})
        g = {n: (g[n] + other[n]) / 2 for n in w}
    return {n: w[n] - lr * g[n] for n in w}
