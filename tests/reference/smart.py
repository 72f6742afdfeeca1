"""SMART on the toy network, token by token, in float64."""

import numpy as np

from tests.reference import toy


def size(v, p):
    return np.abs(v).max() if p == "inf" else np.sqrt((v**2).sum())


def climb(noise, g, mode, p, eta, eps):
    """One step of the ascent for one token (E,)."""
    if mode == "mt_dnn":
        moved = noise + eta * g
        return moved / (size(moved, p) + 1e-6)
    if mode == "dev_repo":
        return noise + eta * g / (size(g, p) + 1e-4)
    moved = noise + eta * g / size(g, p) if size(g, p) > 0 else noise
    if p == "inf":
        return np.minimum(np.maximum(moved, -eps), eps)
    return moved * min(1.0, eps / size(moved, p))


def neighbour(theta, examples, masks, clean, noise, mode, p, eta, eps, distance=toy.distance):
    """Noise by example after one ascent step per entry of masks."""
    for mask in masks:
        z = toy.logits(theta, examples, mask, noise)
        _, d, _ = distance(z, clean)
        _, g = toy.gradient(theta, examples, mask, noise, d)
        noise = [
            np.array([climb(n, gn, mode, p, eta, eps) for n, gn in zip(one, g_one, strict=True)])
            for one, g_one in zip(noise, g, strict=True)
        ]
    return noise


def moved(theta, examples, mask, clean, noise, step, distance):
    """theta + step g / (|g| + 1e-6), g of the mean distance over examples and classes; the words stay."""
    z = toy.logits(theta, examples, mask, noise)
    _, d, _ = distance(z, clean)
    g, _ = toy.gradient(theta, examples, mask, noise, d / z.size, embeddings=False)
    norm = np.sqrt(sum((one**2).sum() for one in g.values()))
    return {name: theta[name] + step * g[name] / (norm + 1e-6) for name in theta}


def objective(
    theta, teacher, examples, labels, masks, noise, lam, mu, smoothness=toy.distance, past=toy.distance, step=0.0,
    **ascent,
):  # fmt: skip
    """1/B sum_i CE + lambda_s D(f(x), f(x~)) + mu D(f(x), f_teacher(x)), and its gradient.

    smoothness, past, distance: D of both terms and of the ascent, with gradients by each prediction.
    masks: of the plain pass, of each ascent step, of the pass at the neighbour.
    step: of the weights of the pass at the neighbour.
    """
    still, n = toy.zeros(theta, examples), len(examples)
    clean = toy.logits(theta, examples, masks[0], still)
    ce, d = toy.task_loss(clean, labels)
    elsewhere = theta
    if step > 0.0:
        before = neighbour(theta, examples, masks[1:-2], clean, noise, **ascent)
        elsewhere = moved(theta, examples, masks[-2], clean, before, step, ascent.get("distance", toy.distance))
    noise = neighbour(theta, examples, masks[1:-1], clean, noise, **ascent)
    near = toy.logits(elsewhere, examples, masks[-1], noise)
    smooth, s1, s2 = smoothness(clean, near)
    before = toy.logits(teacher, examples, np.ones_like(masks[0]), still)
    proximal, b1, _ = past(clean, before)
    g1, _ = toy.gradient(theta, examples, masks[0], still, d + lam * s1 + mu * b1)
    g2, _ = toy.gradient(elsewhere, examples, masks[-1], noise, lam * s2)
    return (ce + lam * smooth + mu * proximal) / n, {name: g / n for name, g in toy.add(g1, g2).items()}


def follow(teacher, theta, beta):
    return {name: beta * teacher[name] + (1.0 - beta) * theta[name] for name in theta}
