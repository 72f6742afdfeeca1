"""R3F's objective on the toy network, in float64."""

from tests.reference import toy


def objective(theta, examples, labels, mask1, mask2, z, lam, detach, regression=False):
    """1/B sum_i CE(f(x)) + lambda (KL(f(x) || f(x + z)) + KL(f(x + z) || f(x))), and its gradient.

    z: noise by example, (T_i, E). detach: no gradient into the embeddings of the noised pass.
    """
    still = toy.zeros(theta, examples)
    clean, noised = toy.logits(theta, examples, mask1, still), toy.logits(theta, examples, mask2, z)
    ce, d = toy.task_loss(clean, labels, regression)
    kl, k1, k2 = toy.distance(clean, noised, regression)
    g1, _ = toy.gradient(theta, examples, mask1, still, d + lam * k1)
    g2, _ = toy.gradient(theta, examples, mask2, z, lam * k2, embeddings=not detach)
    n = len(examples)
    return (ce + lam * kl) / n, {name: g / n for name, g in toy.add(g1, g2).items()}
