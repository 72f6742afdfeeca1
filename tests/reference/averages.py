"""Averages of a sequence of weights, in float64."""


def ema(weights, decay):
    """From the first on."""
    average = weights[0]
    for theta in weights[1:]:
        average = decay * average + (1 - decay) * theta
    return average


def swa(weights):
    return sum(weights) / len(weights)
