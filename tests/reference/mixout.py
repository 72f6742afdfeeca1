"""Mixout, in float64: w (out, in) weight, w0 its anchor, m the mask of 0 and 1, p the share replaced."""


def mixed(w, w0, m, p):
    return (m * w + (1 - m) * w0 - p * w0) / (1 - p)


def gradient(g, m, p, official=False):
    """Of the loss with respect to w, g being that with respect to the mixed weight."""
    return g * m if official else g * m / (1 - p)
