"""R-Drop's objective on the toy network, in float64."""

from tests.reference import toy


def objective(theta, examples, labels, mask1, mask2, alpha, regression=False):
    """1/B sum_i (CE1 + CE2) / 2 + alpha (KL(p1 || p2) + KL(p2 || p1)) / 2, and its gradient."""
    still = toy.zeros(theta, examples)
    z1, z2 = (toy.logits(theta, examples, mask, still) for mask in (mask1, mask2))
    ce1, d1 = toy.task_loss(z1, labels, regression)
    ce2, d2 = toy.task_loss(z2, labels, regression)
    kl, k1, k2 = toy.distance(z1, z2, regression)
    half = 1.0 if regression else 0.5  # squared difference: both directions are the same number
    value = (ce1 + ce2) / 2 + alpha * half * kl
    g1, _ = toy.gradient(theta, examples, mask1, still, d1 / 2 + alpha * half * k1)
    g2, _ = toy.gradient(theta, examples, mask2, still, d2 / 2 + alpha * half * k2)
    n = len(examples)
    return value / n, {name: g / n for name, g in toy.add(g1, g2).items()}
