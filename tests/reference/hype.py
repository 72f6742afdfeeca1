"""HyPe in the paper's symbols: h <- h + e before a layer (Section 3)."""

import numpy as np


def hype(h: np.ndarray, draws: np.ndarray, sigma: float, distribution: str, centered: bool = True) -> np.ndarray:
    """``draws``: standard normals, or uniforms in [0, 1)."""
    if distribution == "normal":
        e = sigma * draws
    elif centered:
        e = sigma * (2 * draws - 1)  # the paper: U(-sigma, sigma)
    else:
        e = sigma * draws  # the authors' code: U(0, sigma)
    return np.asarray(h, np.float64) + e
