"""A linear layer with a low-rank update, and the update's gradients, in float64."""


def forward(x, w, b, a, low, s):
    """Rows of x -> W x + b + s B A x; a: A (r, in), low: B (out, r), s = alpha / r."""
    return x @ w.T + b + s * (x @ a.T) @ low.T


def gradients(x, delta, a, low, s):
    """Of A and B, from the gradient delta at the output."""
    return s * low.T @ delta.T @ x, s * delta.T @ (x @ a.T)
