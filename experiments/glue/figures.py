"""Pictures of a table: the score of every seed as a dot, and learning curves.

    python -m experiments.glue.figures runs/ [--study study.json] --out DIR

Writes ``strip.png``, ``strip.pdf`` and, with ``--curves``, ``curves.png``, ``curves.pdf`` per encoder.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data_utils.errors import SettingError
from experiments.glue.cells import Cell, Selection, Table, Wanted, gather
from experiments.glue.paper import Paper, load_paper
from experiments.glue.titles import SELECTION_TITLES, method_title, metric_title, task_title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart with any colour vision; the marker's fill tells best from last a second time.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#000000")
_GREY = "#555555"
_PER_ROW = 4
_SHIFTS: dict[Selection, float] = {"best": -0.18, "last": 0.18}


def seed_strips(table: Table, stem: Path) -> list[Path]:
    """Draw one panel per task and encoder with every seed as a dot, mean and standard deviation beside them.

    Args:
        table: The table.
        stem: Path of the files without suffix.

    Returns:
        The PNG and the PDF.
    """
    paper = load_paper()
    panels = [(encoder, task) for encoder in table.encoders for task in table.tasks]
    columns = min(_PER_ROW, max(1, len(panels) if len(table.encoders) == 1 else len(table.tasks)))
    rows = max(1, math.ceil(len(panels) / columns))
    height = 1.0 + 0.62 * max(1, len(table.methods))
    figure, axes = _canvas(rows, columns, width=3.4, height=height)
    for axis, (encoder, task) in zip(axes, panels, strict=False):
        title = task_title(task) if len(table.encoders) == 1 else f"{task_title(task)}, {encoder}"
        axis.set_title(title, fontsize=10, loc="left", fontweight="bold")
        _strip_panel(axis, table, paper, encoder, task)
    for axis in axes[len(panels) :]:
        axis.axis("off")
    _strip_legend(figure, table, in_paper=any(paper.row(e, m) for e in table.encoders for m in table.methods))
    return _save(figure, stem)


def _strip_panel(axis: Axes, table: Table, paper: Paper, encoder: str, task: str) -> None:
    for row, method in enumerate(table.methods):
        cell = table.cell(encoder, method, task)
        published = paper.row(encoder, method)
        if cell is not None and published is not None and task in published.scores:
            axis.plot(published.scores[task], row + _SHIFTS["best"], "x", color="black", markersize=5, zorder=4)
        for selection, shift in _SHIFTS.items():
            if cell is None or not _strip(axis, cell, selection, row + shift, _colour(table, method)):
                axis.annotate("missing", (0.02, row + shift), xycoords=("axes fraction", "data"),
                              fontsize=7, color=_GREY, va="center")  # fmt: skip
    axis.set_yticks(range(len(table.methods)), [method_title(method) for method in table.methods], fontsize=9)
    axis.set_ylim(len(table.methods) - 0.5, -0.5)
    axis.set_xlabel(f"{metric_title(table.metric(task)) or 'score'} (%), dev", fontsize=8)
    axis.tick_params(axis="x", labelsize=8)
    axis.tick_params(axis="y", length=0)
    axis.grid(axis="x", color="#dddddd", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.margins(x=0.08)
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)


def _strip(axis: Axes, cell: Cell, selection: Selection, height: float, colour: str) -> bool:
    """One row of dots; returns whether there is anything to show."""
    scores = cell.scores(selection)
    shown = [score for _, score in sorted(scores.items()) if not math.isnan(score)]
    if len(shown) < len(scores):
        # As in the table, a mean that would leave runs out is not shown.
        axis.annotate(f"{len(scores) - len(shown)} of {len(scores)} NaN", (1.0, height), fontsize=7, color=_GREY,
                      xycoords=("axes fraction", "data"), va="center", ha="left", annotation_clip=False)  # fmt: skip
    elif shown:
        mean = float(np.mean(shown))
        axis.plot([mean, mean], [height - 0.15, height + 0.15], color="black", linewidth=1.8, zorder=2)
        if len(shown) > 1:
            std = float(np.std(shown, ddof=1))
            axis.plot([mean - std, mean + std], [height, height], color=colour, alpha=0.3, linewidth=7,
                      solid_capstyle="butt", zorder=1)  # fmt: skip
    face = colour if selection == "best" else "white"
    # Equal scores would hide each other: dots are spread over a narrow band in the order of the seeds.
    spread = np.linspace(-0.08, 0.08, len(shown)) if len(shown) > 1 else np.zeros(len(shown))
    axis.scatter(shown, height + spread, s=20, facecolor=face, edgecolor=colour, linewidth=1.1, zorder=3)
    return bool(scores)


def _strip_legend(figure: Figure, table: Table, in_paper: bool) -> None:
    from matplotlib.lines import Line2D

    seeds = max((len(cell.expected) for cell in table.cells.values()), default=0)
    dot: dict[str, Any] = {"linestyle": "none", "marker": "o", "markersize": 5, "color": _GREY}
    handles = [
        Line2D([], [], label=SELECTION_TITLES["best"], **dot),
        Line2D([], [], label=SELECTION_TITLES["last"], markerfacecolor="white", **dot),
        Line2D([], [], color="black", linestyle="none", marker="|", markersize=10, markeredgewidth=1.8, label="mean"),
        Line2D([], [], color=_GREY, alpha=0.3, linewidth=7, label="± standard deviation"),
    ]
    if in_paper:
        handles.append(Line2D([], [], color="black", linestyle="none", marker="x", label="the paper's mean (best)"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=8, frameon=False)
    one = f"{table.encoders[0]}, " if len(table.encoders) == 1 else ""
    figure.suptitle(
        f"{one}{'one seed' if seeds == 1 else f'each dot one of {seeds} seeds'}", fontsize=10, x=0.01, ha="left"
    )


def learning_curves(table: Table, runs: Path, stem: Path) -> list[Path]:
    """Draw the dev score after each epoch: a line per seed, their mean in bold.

    Args:
        table: The table.
        runs: ``output_dir`` of the runs, for their ``metrics.jsonl``.
        stem: Path of the files without suffix.

    Returns:
        The PNG and the PDF.
    """
    from matplotlib.lines import Line2D
    from matplotlib.ticker import MaxNLocator

    panels = [(encoder, task) for encoder in table.encoders for task in table.tasks]
    columns = min(_PER_ROW, max(1, len(table.tasks)))
    figure, axes = _canvas(max(1, math.ceil(len(panels) / columns)), columns, width=3.4, height=2.6)
    for axis, (encoder, task) in zip(axes, panels, strict=False):
        title = task_title(task) if len(table.encoders) == 1 else f"{task_title(task)}, {encoder}"
        axis.set_title(title, fontsize=10, loc="left", fontweight="bold")
        for method in table.rows_of(encoder):
            cell = table.cell(encoder, method, task)
            if cell is not None:
                _curve(axis, cell, runs, _colour(table, method))
        axis.set_ylabel(f"{metric_title(table.metric(task)) or 'score'} (%), dev", fontsize=8)
        axis.set_xlabel("epoch", fontsize=8)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.tick_params(labelsize=8)
        axis.grid(color="#dddddd", linewidth=0.6)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    for axis in axes[len(panels) :]:
        axis.axis("off")
    handles = [Line2D([], [], color=_colour(table, m), linewidth=2, label=method_title(m)) for m in table.methods]
    figure.legend(handles=handles, loc="outside lower center", ncols=max(1, len(handles)), fontsize=8, frameon=False)
    return _save(figure, stem)


def _curve(axis: Axes, cell: Cell, runs: Path, colour: str) -> None:
    curves: list[dict[int, float]] = []
    for result in cell.results:
        folder = runs / cell.task / cell.encoder / cell.method / cell.run_id / f"seed={result.seed}"
        curve = read_curve(folder / "metrics.jsonl")
        if curve:
            curves.append(curve)
            axis.plot(list(curve), list(curve.values()), color=colour, linewidth=0.6, alpha=0.4)
    epochs = sorted(set.intersection(*(set(curve) for curve in curves))) if curves else []
    if epochs:
        means = [float(np.mean([curve[epoch] for curve in curves])) for epoch in epochs]
        axis.plot(epochs, means, color=colour, linewidth=2, marker="o", markersize=3)


def read_curve(metrics_jsonl: Path) -> dict[int, float]:
    """Epoch -> dev score in percent, from a run's ``metrics.jsonl``; empty when there is none."""
    if not metrics_jsonl.is_file():
        return {}
    records = map(json.loads, metrics_jsonl.read_text(encoding="utf-8").splitlines())
    return {record["epoch"]: record["score"] for record in records if "evaluation" in record}


def _canvas(rows: int, columns: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    # Not pyplot: no display is asked for and no global figure is left behind.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns, height * rows + 0.7), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def _save(figure: Figure, stem: Path) -> list[Path]:
    stem.parent.mkdir(parents=True, exist_ok=True)
    files = [stem.with_name(f"{stem.name}.{suffix}") for suffix in ("png", "pdf")]
    for file in files:
        # No dates inside: the same runs give the same bytes.
        metadata = {"CreationDate": None} if file.suffix == ".pdf" else {}
        figure.savefig(file, dpi=160, metadata=metadata)
    return files


def _colour(table: Table, method: str) -> str:
    return _COLOURS[table.methods.index(method) % len(_COLOURS)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns 0, or 2 for a wrong setting or file."""
    parser = argparse.ArgumentParser(prog="python -m experiments.glue.figures", description="Pictures of a table.")
    parser.add_argument("runs", type=Path, help="output_dir of the runs")
    parser.add_argument("--study", type=Path, help="study.json: show its cells and no others")
    parser.add_argument("--run_id", action="append", default=[], help="run id to take where a cell has several")
    parser.add_argument("--out", type=Path, required=True, help="folder for the files")
    parser.add_argument("--curves", action="store_true", help="learning curves too")
    chosen = parser.parse_args(arguments)
    try:
        table = gather(chosen.runs, Wanted.read(chosen.study) if chosen.study else None, chosen.run_id)
        files = seed_strips(table, chosen.out / "strip")
        files += learning_curves(table, chosen.runs, chosen.out / "curves") if chosen.curves else []
        print("\n".join(map(str, files)))
    except (SettingError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
