"""Component-wise gradient norm clipping: each tensor on its own (Section 4)."""

import numpy as np


def component_clip(gradients: dict[str, np.ndarray], c: float) -> dict[str, np.ndarray]:
    """g_P <- g_P min(1, c / (||g_P|| + 1e-6))."""
    return {name: g * min(1.0, c / (np.sqrt((g**2).sum()) + 1e-6)) for name, g in gradients.items()}
