"""Figures of a benchmark: median and quartiles of timings, and the JSON file."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt


def spread(values: npt.NDArray[np.float64]) -> dict[str, Any]:
    """Median, quartiles and number of values."""
    low, middle, high = np.percentile(values, (25, 50, 75))
    return {"median": float(middle), "quartiles": [float(low), float(high)], "turns": len(values)}


def in_brackets(figure: dict[str, Any], digits: int) -> str:
    """Quartiles as text."""
    return "-".join(f"{value:.{digits}f}" for value in figure["quartiles"])


def write_json(out: Path | None, result: dict[str, Any]) -> None:
    """Write a benchmark's figures as JSON; None writes nothing."""
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
