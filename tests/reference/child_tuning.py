"""Child-Tuning D: Fisher information over batches and the entries it keeps (Equations 5 to 7)."""

import numpy as np


def fisher(batches: list[dict[str, np.ndarray]], clip: float) -> dict[str, np.ndarray]:
    """Mean over batches of the squared gradients, each tensor clipped to a norm first (0: not)."""
    total = {name: np.zeros_like(g) for name, g in batches[0].items()}
    for gradients in batches:
        for name, g in gradients.items():
            if clip > 0:
                g = g * min(1.0, clip / (np.sqrt((g**2).sum()) + 1e-6))
            total[name] += g**2
    return {name: f / len(batches) for name, f in total.items()}


def child(f: dict[str, np.ndarray], p: float) -> dict[str, np.ndarray]:
    """The largest share p of all entries."""
    values = np.sort(np.concatenate([part.ravel() for part in f.values()]))
    bound = values[min(round((1 - p) * len(values)), len(values) - 1)]
    return {name: part >= bound for name, part in f.items()}
