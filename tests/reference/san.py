"""The SAN head in float64 and plain loops, one example after the other."""

import math

import numpy as np


def softmax(scores):
    largest = max(scores)
    powers = [math.exp(score - largest) for score in scores]
    return [power / sum(powers) for power in powers]


def sigmoid(x):
    return 1.0 / (1.0 + math.exp(-x))


def attend(query, tokens):
    """Mean of tokens, weighted by the softmax of their products with a query."""
    weights = softmax([sum(q * t for q, t in zip(query, token, strict=True)) for token in tokens])
    return [sum(w * token[d] for w, token in zip(weights, tokens, strict=True)) for d in range(len(query))]


def linear(theta, name, x):
    weight, bias = theta[f"{name}.weight"], theta[f"{name}.bias"]
    return [sum(w * v for w, v in zip(row, x, strict=True)) + b for row, b in zip(weight, bias, strict=True)]


def cell(theta, x, state):
    size = len(state)
    of_x, of_h = linear(theta, "cell.of_input", x), linear(theta, "cell.of_state", state)
    following = []
    for d in range(size):
        reset = sigmoid(of_x[d] + of_h[d])
        update = sigmoid(of_x[size + d] + of_h[size + d])
        new = math.tanh(of_x[2 * size + d] + reset * of_h[2 * size + d])
        following.append((1 - update) * new + update * state[d])
    return following


def answer(theta, first, second, kept):
    """One example.

    Args:
        theta: parameters by name.
        first: token states of the first text.
        second: token states of the second text.
        kept: for each turn whether it counts.

    Returns:
        K logarithms of the mean probabilities of the turns that are kept; their mean score where K = 1.
    """
    state = attend(theta["summary.weight"][0], second)
    given = []
    for turn in range(len(kept)):
        read = attend(linear(theta, "attention", state), first)
        merged = [*read, *state]
        merged += [abs(r - s) for r, s in zip(read, state, strict=True)]
        merged += [r * s for r, s in zip(read, state, strict=True)]
        scores = linear(theta, "classifier", merged)
        if kept[turn]:
            given.append(scores if len(scores) == 1 else softmax(scores))
        if turn + 1 < len(kept):
            state = cell(theta, read, state)
    means = [sum(of_class) / len(given) for of_class in zip(*given, strict=True)]
    return means if len(means) == 1 else [math.log(mean) for mean in means]


def gradient(theta, value, step=1e-5):
    """Central differences of ``value(theta)`` by every parameter."""
    found = {}
    for name, values in theta.items():
        found[name] = np.zeros_like(values)
        for place in np.ndindex(values.shape):
            ends = []
            for side in (step, -step):
                moved = {**theta, name: values.copy()}
                moved[name][place] += side
                ends.append(value(moved))
            found[name][place] = (ends[0] - ends[1]) / (2 * step)
    return found
