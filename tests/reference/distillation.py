"""Distillation in float64, example by example, in the symbols of Hinton et al. 2015: logits z and v, temperature T."""

import math

import numpy as np


def softmax(logits, T):
    largest = max(logits)
    e = [math.exp((value - largest) / T) for value in logits]
    return [value / sum(e) for value in e]


def distance(criterion, z, v, T):
    """Distance of one example's logits z from the teacher's v."""
    if criterion == "MseCriterion":
        return sum((a - b) ** 2 for a, b in zip(z, v, strict=True)) / len(z)
    q, p = softmax(z, T), softmax(v, T)
    if criterion == "CeCriterion":
        return -(T**2) * sum(pk * math.log(qk) for pk, qk in zip(p, q, strict=True))
    forward = sum(pk * math.log(pk / qk) for pk, qk in zip(p, q, strict=True))
    if criterion == "KlCriterion":
        return T**2 * forward
    backward = sum(qk * math.log(qk / pk) for pk, qk in zip(p, q, strict=True))
    return T**2 * (forward + backward)


def mean_prediction(each):
    """Log mean probabilities of M models' (N, K) logits, or mean scores where K = 1."""
    found = []
    for rows in zip(*each, strict=True):
        if len(rows[0]) == 1:
            found.append([sum(float(row[0]) for row in rows) / len(rows)])
            continue
        shares = [softmax([float(value) for value in row], 1.0) for row in rows]
        found.append([math.log(sum(column) / len(shares)) for column in zip(*shares, strict=True)])
    return np.array(found)
