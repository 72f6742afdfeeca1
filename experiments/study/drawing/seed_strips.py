"""The score of every seed as a dot, a panel per task and encoder."""

from __future__ import annotations

import math
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.study.drawing import plotting
from experiments.study.table.cells import Cell, Selection, Table, chosen_held_out
from experiments.study.table.paper import Paper, load_paper
from experiments.study.table.titles import method_title, metric_title, selection_title, task_title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PER_ROW = 4
_WIDTH = 2.4  # inches of a panel
_NAMES = 1.7  # inches for the names of the methods, left of each row of panels
_NAME_LENGTH = 24  # characters of a name in a line; names of compositions are longer
_SHIFTS: dict[Selection, float] = {"best": -0.18, "last": 0.18}


def seed_strips(table: Table, stem: Path) -> list[Path]:
    """Draw one panel per task and encoder with every seed as a dot, mean and standard deviation beside them.

    Args:
        table: The table.
        stem: Path of the files without suffix.

    Returns:
        The PNG and the PDF.
    """
    paper = load_paper(table.benchmark)
    panels = [(encoder, task) for encoder in table.encoders for task in table.tasks]
    columns = min(_PER_ROW, max(1, len(panels) if len(table.encoders) == 1 else len(table.tasks)))
    rows = max(1, math.ceil(len(panels) / columns))
    height = 1.0 + 0.62 * max(1, len(table.methods))
    with plotting.style():
        figure, axes = plotting.canvas(rows, columns, _NAMES + _WIDTH * columns, height * rows + 1.0)
        for place, (axis, (encoder, task)) in enumerate(zip(axes, panels, strict=False)):
            title = task_title(task) if len(table.encoders) == 1 else f"{task_title(task)}, {encoder}"
            axis.set_title(title, fontsize=10, fontweight="bold")
            _strip_panel(axis, table, paper, encoder, task, named=place % columns == 0)
        for axis in axes[len(panels) :]:
            axis.axis("off")
        published = (paper.row(e, m, table.tasks) for e in table.encoders for m in table.methods)
        _strip_legend(figure, table, in_paper=any(published))
        return plotting.save(figure, stem)


def _strip_panel(axis: Axes, table: Table, paper: Paper, encoder: str, task: str, named: bool) -> None:
    for row, method in enumerate(table.methods):
        cell = table.cell(encoder, method, task)
        published = paper.row(encoder, method, table.tasks)
        if cell is not None and published is not None and task in published.scores:
            axis.plot(published.scores[task], row + _SHIFTS["best"], "x", color="black", markersize=5, zorder=4)
        for selection, shift in _SHIFTS.items():
            if cell is None or not _strip(axis, cell, selection, row + shift, plotting.look(row).colour):
                axis.annotate("missing", (0.02, row + shift), xycoords=("axes fraction", "data"),
                              fontsize=7, color=plotting.GREY, va="center")  # fmt: skip
    names = [textwrap.fill(method_title(method), _NAME_LENGTH) if named else "" for method in table.methods]
    axis.set_yticks(range(len(names)), names, fontsize=9)
    axis.set_ylim(len(table.methods) - 0.5, -0.5)
    axis.set_xlabel(f"{metric_title(table.metric(task)) or 'score'} (%), dev", fontsize=8)
    axis.tick_params(axis="x", labelsize=8)
    axis.tick_params(axis="y", length=0)
    axis.grid(axis="x")
    axis.margins(x=0.08)
    axis.spines["left"].set_visible(False)


def _strip(axis: Axes, cell: Cell, selection: Selection, height: float, colour: str) -> bool:
    """Draw a row of dots; returns whether there is anything to show."""
    scores = cell.scores(selection)
    shown = [score for _, score in sorted(scores.items()) if not math.isnan(score)]
    if len(shown) < len(scores):
        # As in the table, a mean that would leave runs out is not shown.
        axis.annotate(f"{len(scores) - len(shown)} of {len(scores)} NaN", (1.0, height), fontsize=7,
                      color=plotting.GREY, xycoords=("axes fraction", "data"), va="center", ha="left",
                      annotation_clip=False)  # fmt: skip
    elif shown:
        mean = float(np.mean(shown))
        axis.plot([mean, mean], [height - 0.15, height + 0.15], color="black", linewidth=1.8, zorder=2)
        if len(shown) > 1:
            std = float(np.std(shown, ddof=1))
            axis.plot([mean - std, mean + std], [height, height], color=colour, alpha=0.3, linewidth=7,
                      solid_capstyle="butt", zorder=1)  # fmt: skip
    face = colour if selection == "best" else "white"
    heights = [height + offset for offset in plotting.swarm(len(shown))]
    axis.scatter(shown, heights, s=20, facecolor=face, edgecolor=colour, linewidth=1.1, zorder=3)
    return bool(scores)


def _strip_legend(figure: Figure, table: Table, in_paper: bool) -> None:
    from matplotlib.lines import Line2D

    seeds = max((len(cell.expected) for cell in table.cells.values()), default=0)
    dot: dict[str, Any] = {"linestyle": "none", "marker": "o", "markersize": 5, "color": plotting.GREY}
    handles = [
        Line2D([], [], label=selection_title("best", chosen_held_out(table.cells.values())), **dot),
        Line2D([], [], label=selection_title("last"), markerfacecolor="white", **dot),
        Line2D([], [], color="black", linestyle="none", marker="|", markersize=10, markeredgewidth=1.8, label="mean"),
        Line2D([], [], color=plotting.GREY, alpha=0.3, linewidth=7, label="± standard deviation"),
    ]
    if in_paper:
        handles.append(Line2D([], [], color="black", linestyle="none", marker="x", label="the paper's mean (best)"))
    plotting.legend_below(figure, handles, fontsize=8)
    one = f"{table.encoders[0]}, " if len(table.encoders) == 1 else ""
    plotting.heading(figure, f"{one}{'one seed' if seeds == 1 else f'each dot one of {seeds} seeds'}", size=10)
