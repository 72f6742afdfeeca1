"""The distribution of sensitivities and its concentration, as pictures (Figure 2)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from experiments.study.drawing import plotting
from experiments.study.table.titles import method_title
from module.sensitivity_summary import FULL_RANGE, PAPER_RANGE, SensitivitySummary, bin_edges

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Summaries = Mapping[str, Mapping[int, SensitivitySummary]]
"""Method -> seed -> sensitivities."""

_STATISTICS = {"std": "std of s̄", "gini": "Gini coefficient", "entropy": "entropy (bits)"}
_HIDDEN = 2e-3  # of the full range, ends where no method has this density are not shown


def draw_distribution(summaries: Summaries, title: str, stem: Path) -> list[Path]:
    """Draw the density of s̄ per decade, over the paper's range and over all of it, one below the other.

    Args:
        summaries: Method -> seed -> sensitivities.
        title: Such as ``CoLA, bert-base-uncased``.
        stem: Path of the files without suffix.

    Returns:
        The PNG, the PDF and the CSV.
    """
    rows: list[list[object]] = [
        ["method", "range", "low", "high", "n_seeds", "share_mean", "share_std", "density_mean", "density_std"]
    ]
    with plotting.style():
        figure, (above, below) = plotting.canvas(2, 1, plotting.COLUMN, 4.1 + 0.08 * max(0, len(summaries) - 3))
        plotting.heading(figure, title)
        above.set_title("the paper's range")
        below.set_title("the whole distribution; shaded: the paper's range")
        for axis, name, span in ((above, "paper", PAPER_RANGE), (below, "full", FULL_RANGE)):
            edges = bin_edges(*span)
            axis.set_xscale("log")
            axis.set_ylabel("density per decade")
            axis.grid()
            for place, (method, by_seed) in enumerate(summaries.items()):
                if not by_seed:
                    continue
                shares = np.array([getattr(s, f"{name}_counts") for s in by_seed.values()]) / np.array(
                    [[s.n] for s in by_seed.values()]
                )  # (seeds, bins + 2)
                rows += _rows(method, name, edges, shares)
                density = shares[:, 1:-1] / np.diff(np.log10(edges))
                plotting.mean_and_band(
                    axis, np.sqrt(edges[:-1] * edges[1:]), density, plotting.look(place), markers=False
                )
            axis.set_ylim(bottom=0.0)
        above.set_xlim(*PAPER_RANGE[:2])
        below.axvspan(*PAPER_RANGE[:2], color="#eeeeee", zorder=0)
        below.set_xlim(*_shown(below))
        below.set_xlabel(r"sensitivity $\bar{s}$, moving average of $|\theta \cdot g|$")
        plotting.legend_of_lines(figure, map(method_title, summaries), markers=False)
        return [*plotting.save(figure, stem), plotting.save_data(stem, rows)]


def _rows(
    method: str, name: str, edges: npt.NDArray[np.float64], shares: npt.NDArray[np.float64]
) -> list[list[object]]:
    mean, std = plotting.mean_std(shares)
    lows, highs = [0.0, *edges], [*edges, float("inf")]
    rows: list[list[object]] = []
    for i, (low, high) in enumerate(zip(lows, highs, strict=True)):
        decades = np.log10(high / low) if low > 0.0 and high < float("inf") else None
        spread = float(std[i]) if len(shares) > 1 else None
        densities = [None if v is None or decades is None else float(v / decades) for v in (mean[i], spread)]
        rows.append([method, name, float(low), float(high), len(shares), float(mean[i]), spread, *densities])
    return rows


def _shown(axis: Axes) -> tuple[float, float]:
    """The part of the axis where a curve stands off the ground, the paper's range included."""
    low, high = PAPER_RANGE[:2]
    for line in axis.lines:
        x, y = (np.asarray(values, np.float64) for values in line.get_data())
        there = x[y > _HIDDEN]
        if there.size:
            low, high = min(low, float(there[0])), max(high, float(there[-1]))
    return low, high


def draw_concentration(summaries: Summaries, title: str, stem: Path) -> list[Path]:
    """Draw standard deviation, Gini coefficient and entropy of s̄: a dot per seed, mean and standard deviation.

    Args:
        summaries: Method -> seed -> sensitivities.
        title: Such as ``CoLA, bert-base-uncased``.
        stem: Path of the files without suffix.

    Returns:
        The PNG, the PDF and the CSV.
    """
    rows: list[list[object]] = [["method", "statistic", "seed", "value"]]
    with plotting.style():
        height = 0.3 + len(_STATISTICS) * (0.45 + 0.2 * len(summaries))
        figure, axes = plotting.canvas(len(_STATISTICS), 1, plotting.COLUMN, height)
        plotting.heading(figure, title)
        for axis, (name, label) in zip(axes, _STATISTICS.items(), strict=True):
            for place, (method, by_seed) in enumerate(summaries.items()):
                values = [float(getattr(s, name)) for s in by_seed.values()]
                rows += [[method, name, seed, value] for seed, value in zip(by_seed, values, strict=True)]
                _dots(axis, values, place)
            axis.set_xlabel(label)
            axis.ticklabel_format(axis="x", useOffset=False)
            axis.locator_params(axis="x", nbins=5)
            axis.tick_params(axis="y", length=0)
            axis.margins(x=0.1)
            axis.grid(axis="x")
            axis.spines["left"].set_visible(False)
            axis.set_yticks(range(len(summaries)), [method_title(method) for method in summaries])
            axis.set_ylim(len(summaries) - 0.5, -0.5)
        return [*plotting.save(figure, stem), plotting.save_data(stem, rows)]


def _dots(axis: Axes, values: list[float], place: int) -> None:
    """Draw a row: the seeds' values around their mean, which stands as a line in a bar of one standard deviation."""
    if not values:
        return
    mean, shown = float(np.mean(values)), plotting.look(place)
    if len(values) > 1:
        std = float(np.std(values, ddof=1))
        axis.plot([mean - std, mean + std], [place, place], color=shown.colour, alpha=0.3, linewidth=7,
                  solid_capstyle="butt", zorder=1)  # fmt: skip
        axis.plot([mean, mean], [place - 0.28, place + 0.28], color="black", linewidth=1.2, zorder=2)
    heights = [place + offset for offset in plotting.swarm(len(values), 0.15)]
    axis.scatter(values, heights, s=9, marker=shown.marker, color=shown.colour, zorder=3)
