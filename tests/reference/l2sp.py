"""L2-SP's penalty and its gradient, in float64."""


def penalty(theta, theta0, alpha):
    """alpha / 2 ||theta - theta0||^2; the head's: beta and theta0 = 0."""
    return alpha / 2 * ((theta - theta0) ** 2).sum()


def gradient(g, theta, theta0, alpha):
    """Gradient of loss and penalty; g: the loss's."""
    return g + alpha * (theta - theta0)
