"""MT-DNN's criteria of two predictions in float64: value summed over the examples, gradients by z and by y.

z, y: (B, K); p = softmax(z), q = softmax(y). What MT-DNN detaches has no gradient here.
"""

import numpy as np

from tests.reference.toy import softmax

EPS = 1e-6


def centred(p, d):
    return p * (d - (p * d).sum(-1, keepdims=True))


def mse(z, y):
    k = z.shape[-1]
    return ((z - y) ** 2).sum() / k, 2 * (z - y) / k, 2 * (y - z) / k


def kl(z, y):
    p, q = softmax(z), softmax(y)
    r = np.log(q / p)
    return (q * r).sum(), p - q, centred(q, r)


def sym_kl(z, y):
    p, q = softmax(z), softmax(y)
    return ((p - q) * np.log(p / q)).sum(), p - q, q - p


def log_odds(p):
    return -np.log(1 / (p + EPS) - 1 + EPS)


def ns_kl(z, y):
    p, q = softmax(z), softmax(y)
    d = log_odds(p) - log_odds(q)
    return (2 * p * d).sum(), 2 * centred(p, d), np.zeros_like(y)


def ns_sym_kl(z, y):
    one, dz, _ = ns_kl(z, y)
    other, dy, _ = ns_kl(y, z)
    return one + other, dz, dy


def js(z, y):
    p, q = softmax(z), softmax(y)
    m = (p + q) / 2
    return (m * np.log(m / p) + m * np.log(m / q)).sum(), p - m, q - m


BY_NAME = {
    "MseCriterion": mse,
    "KlCriterion": kl,
    "SymKlCriterion": sym_kl,
    "NsKlCriterion": ns_kl,
    "NsSymKlCriterion": ns_sym_kl,
    "JSCriterion": js,
}
