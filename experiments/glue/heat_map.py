"""Mean sensitivity by encoder layer and kind of tensor, as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from experiments.glue.plotting import COLUMN, canvas, mean_std, save, save_data, style
from experiments.glue.titles import method_title
from module.sensitivity_summary import SensitivitySummary

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Suffixes of BERT, RoBERTa and ELECTRA; those of other trees are shown as they are.
_TITLES = {
    "attention.self.query": "query",
    "attention.self.key": "key",
    "attention.self.value": "value",
    "attention.output.dense": "attention out",
    "intermediate.dense": "feed-forward in",
    "output.dense": "feed-forward out",
}
_LEAVES = {"weight": "W", "bias": "b"}


def draw_heat_map(summaries: Mapping[str, Mapping[int, SensitivitySummary]], title: str, stem: Path) -> list[Path]:
    """Draw a panel per method: layers across, kinds of tensors down, the mean s̄ of a tensor over its entries and seeds.

    Args:
        summaries: Method -> seed -> sensitivities; methods without a seed are left out.
        title: Such as ``CoLA, bert-base-uncased``.
        stem: Path of the files without suffix.

    Returns:
        The PNG, the PDF and the CSV.
    """
    from matplotlib.colors import LogNorm

    shown = {method: by_seed for method, by_seed in summaries.items() if by_seed}
    paths = list(dict.fromkeys(t.path for by_seed in shown.values() for s in by_seed.values() for t in s.tensors))
    kinds = sorted({_kind(path) for path in paths}, key=_order)
    layers = sorted({_layer(path) for path in paths})
    rows: list[list[object]] = [["method", "layer", "kind", "n_seeds", "mean", "std"]]
    grids: dict[str, npt.NDArray[np.float64]] = {}
    for method, by_seed in shown.items():
        grids[method] = np.full((len(kinds), len(layers)), np.nan)
        for path in paths:
            means = [t.mean for s in by_seed.values() for t in s.tensors if t.path == path]
            if not means:
                continue
            mean, std = (float(value[0]) for value in mean_std(np.array([means]).T))
            grids[method][kinds.index(_kind(path)), layers.index(_layer(path))] = mean
            rows.append([method, _layer(path), _kind(path), len(means), mean, std if len(means) > 1 else None])
    positive = np.concatenate([grid[grid > 0.0] for grid in grids.values()])
    # A zero (the key's bias may be one) has no place on a logarithmic scale: it is left white.
    norm = LogNorm(positive.min(), positive.max() * 1.0001) if positive.size else LogNorm(1e-12, 1.0)
    with style():
        height = 0.6 + len(shown) * (0.35 + 0.135 * len(kinds)) + 0.35
        figure, axes = canvas(len(shown), 1, COLUMN, height, sharex=True)
        figure.suptitle(f"{title}: mean s̄ by layer and tensor", x=0.01, ha="left", fontsize=8)
        for axis, (method, grid) in zip(axes, grids.items(), strict=True):
            image = axis.imshow(np.ma.masked_less_equal(grid, 0.0), norm=norm, cmap="viridis", aspect="auto")
            _label(axis, method_title(method), kinds, layers)
        axes[-1].set_xlabel("layer")
        bar = figure.colorbar(image, ax=axes, location="bottom", aspect=35, pad=0.02)
        bar.ax.tick_params(labelsize=6)
        return [*save(figure, stem), save_data(stem, rows)]


def _label(axis: Axes, title: str, kinds: list[str], layers: list[int]) -> None:
    axis.set_title(title)
    axis.set_yticks(range(len(kinds)), [_kind_title(kind) for kind in kinds], fontsize=6)
    step = 1 if len(layers) <= 12 else 2
    axis.set_xticks(range(0, len(layers), step), [str(layer + 1) for layer in layers[::step]])
    axis.tick_params(length=0)
    for side in ("left", "bottom"):
        axis.spines[side].set_visible(False)


def _layer(path: str) -> int:
    return int(path.split(".")[1])


def _kind(path: str) -> str:
    return path.split(".", 2)[2]


def _kind_title(kind: str) -> str:
    module, _, leaf = kind.rpartition(".")
    return f"{_TITLES.get(module, module)} {_LEAVES.get(leaf, leaf)}"


def _order(kind: str) -> tuple[bool, int, str]:
    """Weights before biases, each in the order in which a layer computes."""
    module, _, leaf = kind.rpartition(".")
    known = list(_TITLES)
    return leaf != "weight", known.index(module) if module in known else len(known), kind
