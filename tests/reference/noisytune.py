"""NoisyTune, Equation 1, in float64."""

import numpy as np


def noisytune(w, uniform, lam):
    """W~ = W + U(-lambda/2, lambda/2) std(W); uniform: draws from U(0, 1); std as torch has it, over N - 1."""
    if w.size <= 1:
        return w.copy()
    return w + lam * (uniform - 0.5) * np.sqrt(((w - w.mean()) ** 2).sum() / (w.size - 1))
