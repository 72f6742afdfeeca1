"""NEFTune: embeddings of one example + U(-1, 1) alpha / sqrt(L d) (Algorithm 1)."""

import numpy as np


def neftune(x: np.ndarray, uniform: np.ndarray, alpha: float, length: int | None = None) -> np.ndarray:
    """``x``: (L, d) of one example; ``uniform`` in [0, 1); ``length``: L, the example's own if None."""
    L, d = x.shape
    return x + (2 * uniform - 1) * alpha / np.sqrt((length or L) * d)
