"""Mean sensitivity by encoder layer and kind of tensor, as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from experiments.study.drawing import plotting
from experiments.study.table.titles import method_title
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
_FLOOR = 1e-3  # of the median; the key's bias has no gradient but rounding errors and would take up the whole scale
_ONE_COLUMN = 3  # methods up to which the panels stand one below the other


def draw_heat_map(summaries: Mapping[str, Mapping[int, SensitivitySummary]], title: str, stem: Path) -> list[Path]:
    """Draw a panel per method: layers across, kinds of tensors down, the mean s̄ of a tensor over its entries and seeds.

    Args:
        summaries: Method -> seed -> sensitivities; methods without a seed are left out.
        title: Such as ``CoLA, bert-base-uncased``.
        stem: Path of the files without suffix.

    Returns:
        The PNG, the PDF and the CSV.
    """
    import matplotlib as mpl
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
            mean, std = (float(value[0]) for value in plotting.mean_std(np.array([means]).T))
            grids[method][kinds.index(_kind(path)), layers.index(_layer(path))] = mean
            rows.append([method, _layer(path), _kind(path), len(means), mean, std if len(means) > 1 else None])
    low, high = _limits(np.concatenate([grid.ravel() for grid in grids.values()]))
    colours = mpl.colormaps["viridis"].with_extremes(under="#bbbbbb", bad="white")
    with plotting.style():
        columns = 1 if len(shown) <= _ONE_COLUMN else 2
        lines = -(-len(shown) // columns)
        height = 0.9 + lines * (0.35 + 0.135 * len(kinds))
        figure, axes = plotting.canvas(lines, columns, plotting.COLUMN * columns, height)
        plotting.heading(figure, f"{title}: mean s̄ by layer and tensor")
        for axis, (method, grid) in zip(axes, grids.items(), strict=False):
            image = axis.imshow(grid, norm=LogNorm(low, high), cmap=colours, aspect="auto", interpolation="nearest")
            _label(axis, method_title(method), kinds, layers)
        for axis in axes[max(0, len(grids) - columns) : len(grids)]:
            axis.set_xlabel("layer", labelpad=1)
        for axis in axes[len(grids) :]:
            axis.axis("off")
        bar = figure.colorbar(image, ax=axes, location="bottom", aspect=35, pad=0.02, extend="min")
        # In two lines: the names of the tensors may leave a panel half of the figure's width.
        bar.set_label("mean s̄ (W weights, b biases;\ngrey: below the scale)", fontsize=7)
        bar.ax.tick_params(which="both", labelsize=6)
        return [*plotting.save(figure, stem), plotting.save_data(stem, rows)]


def _limits(means: npt.NDArray[np.float64]) -> tuple[float, float]:
    """Ends of the colour scale; lower values, zeros included, are grey."""
    positive = means[means > 0.0]
    if not positive.size:
        return 1e-12, 1.0
    low = float(positive[positive >= _FLOOR * np.median(positive)].min())
    return low, max(float(positive.max()), 1.001 * low)


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
