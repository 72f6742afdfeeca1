"""Pictures of a search: parallel coordinates, and the score against each setting."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from experiments.benchmark import in_table_order
from experiments.study.drawing import plotting
from experiments.study.search.trials import Search, SearchedCell, Trial, TrialStatus
from experiments.study.table.text_table import setting_text
from experiments.study.table.titles import method_title, metric_title, task_title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BEST = "#D55E00"  # Okabe and Ito's vermilion: stands out of cividis with any colour vision
_GREY = "#555555"
_PRUNED = "#999999"
_MAP, _DARKEST, _BRIGHTEST = "cividis", 0.0, 0.88  # its bright end is too pale on white


def search_figures(search: Search, out: Path) -> list[Path]:
    """Draw two pictures of each (encoder, method) with trials that have scores; returns the files."""
    files = []
    for (encoder, method), found in search.with_best().items():
        by_task = {cell.task: cell for cell in found}
        cells = [by_task[task] for task in in_table_order(by_task)]
        with plotting.style():
            files += _parallel(search, cells, out / f"parallel_{encoder}_{method}")
            files += _per_setting(search, cells, out / f"settings_{encoder}_{method}")
    return files


def _parallel(search: Search, cells: list[SearchedCell], stem: Path) -> list[Path]:
    """Draw a panel per task, with a line per trial through its settings to its score."""
    columns = 1 if len(cells) == 1 else 2
    widest = max(len(_searched(cell)) for cell in cells)
    rows = math.ceil(len(cells) / columns)
    figure, axes = plotting.canvas(rows, columns, (1.6 + 1.35 * widest) * columns, 3.0 * rows + 0.7)
    for axis, cell in zip(axes, cells, strict=False):
        _parallel_panel(axis, cell, _score_name(search, cell))
    for axis in axes[len(cells) :]:
        axis.axis("off")
    _legend(figure, search, cells, marker=False)
    return plotting.save(figure, stem)


def _parallel_panel(axis: Axes, cell: SearchedCell, score_name: str) -> None:
    from matplotlib import colormaps
    from matplotlib.ticker import MaxNLocator

    scores = sorted(trial.score for trial in _scored(cell))
    low, high = scores[0], scores[-1]
    keys = _searched(cell)
    for x, values in enumerate(cell.grid[key] for key in keys):
        _axis_line(axis, x, [(_height(i, len(values)), setting_text(value)) for i, value in enumerate(values)])
    ticks = [low] if low == high else [t for t in MaxNLocator(5).tick_values(low, high) if low <= t <= high]
    _axis_line(axis, len(keys), [(_share(tick, low, high), f"{tick:.4g}") for tick in ticks], left=False)
    # The worst first, so that the best lie on top.
    for trial in sorted(cell.trials, key=lambda trial: -math.inf if math.isnan(trial.score) else trial.score):
        heights = [_height(list(cell.grid[key]).index(trial.settings[key]), len(cell.grid[key])) for key in keys]
        if trial.status is TrialStatus.PRUNED:
            axis.plot(range(len(keys)), heights, color=_PRUNED, linestyle=":", linewidth=0.8, alpha=0.7, zorder=1)
        elif not math.isnan(trial.score):
            is_best = trial is cell.best
            # By rank: one very bad trial would leave the others all alike.
            bright = _DARKEST + (_BRIGHTEST - _DARKEST) * _height(scores.index(trial.score), len(scores))
            colour = _BEST if is_best else colormaps[_MAP](bright)
            heights.append(_share(trial.score, low, high))
            axis.plot(range(len(keys) + 1), heights, color=colour, linewidth=2.4 if is_best else 1.1,
                      alpha=1.0 if is_best else 0.8, zorder=3 if is_best else 2)  # fmt: skip
    pruned = cell.count(TrialStatus.PRUNED)
    counted = f"{len(scores)} {'trial' if len(scores) == 1 else 'trials'}" + (f", {pruned} pruned" if pruned else "")
    axis.set_title(f"{task_title(cell.task)}: {counted}", fontsize=10, loc="left", fontweight="bold")
    names = [_short(key, cell.method) for key in keys]
    axis.set_xticks(range(len(keys) + 1), [*names, score_name.replace(" ", "\n", 1)], fontsize=8)
    axis.set_xlim(-0.45, len(keys) + 0.35)
    axis.set_ylim(-0.06, 1.06)
    axis.set_yticks([])
    axis.tick_params(axis="x", length=0)
    for side in axis.spines.values():
        side.set_visible(False)


def _axis_line(axis: Axes, x: int, labels: list[tuple[float, str]], left: bool = True) -> None:
    axis.plot([x, x], [0, 1], color=_GREY, linewidth=0.9, zorder=0)
    for height, text in labels:
        axis.annotate(
            text, (x, height), xytext=(-4 if left else 4, 0), textcoords="offset points", fontsize=7,
            ha="right" if left else "left", va="center", color="black", zorder=5,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.6},
        )  # fmt: skip


def _per_setting(search: Search, cells: list[SearchedCell], stem: Path) -> list[Path]:
    """Draw a row of panels per task: the score of every trial against the value of each setting."""
    widest = max(len(_searched(cell)) for cell in cells)
    side_by_side = min(len(cells), 3) if widest == 1 else 1  # tasks in a row, where one panel is all a task has
    rows = math.ceil(len(cells) / side_by_side)
    figure, axes = plotting.canvas(rows, widest * side_by_side, 2.6 * widest * side_by_side, 2.3 * rows + 0.7)
    for number, cell in enumerate(cells):
        own = axes[number * widest : (number + 1) * widest]
        keys = _searched(cell)
        for axis, key in zip(own, keys, strict=False):
            _setting_panel(axis, cell, key)
        for axis in own[1:]:
            axis.tick_params(axis="y", labelleft=False)  # the same scores as in the first
        own[0].set_ylabel(f"{task_title(cell.task)}\n{_score_name(search, cell)} (%)", fontsize=8)
        for axis in own[len(keys) :]:
            axis.axis("off")
    for axis in axes[len(cells) * widest :]:
        axis.axis("off")
    _legend(figure, search, cells, marker=True)
    return plotting.save(figure, stem)


def _setting_panel(axis: Axes, cell: SearchedCell, key: str) -> None:
    values = list(cell.grid[key])
    by_value: dict[int, list[Trial]] = {}
    for trial in _scored(cell):
        by_value.setdefault(values.index(trial.settings[key]), []).append(trial)
    for i, trials in by_value.items():
        # Equal scores would hide each other: dots are spread over a narrow band in the order of the trials.
        spread = np.linspace(-0.18, 0.18, len(trials)) if len(trials) > 1 else np.zeros(1)
        axis.scatter(i + spread, [trial.score for trial in trials], s=16, color="#0072B2", alpha=0.8, zorder=2)
        if len(trials) > 1:
            median = float(np.median([trial.score for trial in trials]))
            axis.plot([i - 0.3, i + 0.3], [median, median], color="black", linewidth=1.6, zorder=3)
        for shift, trial in zip(spread, trials, strict=True):
            if trial is cell.best:
                axis.scatter(
                    [i + shift], [trial.score], s=70, facecolor="none", edgecolor=_BEST, linewidth=1.8, zorder=4
                )
    pruned = [values.index(t.settings[key]) for t in cell.trials if t.status is TrialStatus.PRUNED]
    for i in sorted(set(pruned)):
        axis.annotate(f"{pruned.count(i)}×", (i, 0.0), xycoords=("data", "axes fraction"), xytext=(0, 3),
                      textcoords="offset points", fontsize=7, color=_PRUNED, ha="center",
                      bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6})  # fmt: skip
    tilt = 45 if len(values) > 5 else 0
    axis.set_xticks(range(len(values)), [setting_text(value) for value in values], fontsize=7, rotation=tilt)
    axis.set_xlim(-0.6, len(values) - 0.4)
    axis.margins(y=0.15)
    axis.set_xlabel(_short(key, cell.method).replace("\n", " "), fontsize=8)
    axis.tick_params(axis="y", labelsize=7)
    axis.grid(axis="y", color="#dddddd", linewidth=0.6)
    axis.set_axisbelow(True)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def _legend(figure: Figure, search: Search, cells: list[SearchedCell], marker: bool) -> None:
    from matplotlib.lines import Line2D

    if marker:
        dot = {"linestyle": "none", "marker": "o"}
        handles = [
            Line2D([], [], color="#0072B2", markersize=4, label="trial", **dot),  # type: ignore[arg-type]
            Line2D([], [], color="black", linewidth=1.6, label="median of several"),
            Line2D([], [], color=_BEST, markersize=8, markerfacecolor="none", markeredgewidth=1.8, label="chosen",
                   **dot),  # type: ignore[arg-type]
        ]  # fmt: skip
    else:
        handles = [
            Line2D([], [], color=_BEST, linewidth=2.4, label="chosen"),
            Line2D([], [], color="#575d6d", linewidth=1.1, label="trial, the brighter the better"),
        ]
    if search.prune_after is not None:
        label = "pruned (number of trials)" if marker else "pruned"
        handles.append(Line2D([], [], color=_PRUNED, linestyle="none" if marker else ":", label=label,
                              marker="$n×$" if marker else "", markersize=9))  # fmt: skip
    plotting.legend_below(figure, handles)
    first = cells[0]
    plotting.heading(figure, f"{method_title(first.method)}, {first.name}: {search.sampler} search", size=10)


def _searched(cell: SearchedCell) -> list[str]:
    """The settings with several values, or all where none has: against one value a score tells nothing."""
    return [key for key, values in cell.grid.items() if len(values) > 1] or list(cell.grid)


def _score_name(search: Search, cell: SearchedCell) -> str:
    where = "dev" if search.holdout is None else "held out"
    return f"{metric_title(cell.metric) or 'score'} {where}"


def _short(key: str, method: str) -> str:
    """``pats.noise_scale`` -> ``noise scale`` where there is one method; words on lines of their own."""
    group, _, name = key.partition(".")
    shown = name if name and "+" not in method else key
    return (shown or group).replace("_", "\n")


def _scored(cell: SearchedCell) -> list[Trial]:
    return [trial for trial in cell.trials if not math.isnan(trial.score)]


def _height(index: int, count: int) -> float:
    return index / (count - 1) if count > 1 else 0.5


def _share(score: float, low: float, high: float) -> float:
    return (score - low) / (high - low) if high > low else 0.5
