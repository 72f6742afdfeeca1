"""Score and spread of the sensitivities against the share of the training data, as a picture (Figure 3)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from experiments.study.drawing import plotting
from experiments.study.statistics.difference import Difference
from experiments.study.table.cells import Selection, baseline_of
from experiments.study.table.titles import method_title, metric_title, selection_title, task_title

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, slots=True)
class SharePoint:
    """One run of Figure 3."""

    share: float
    """Percent of the training set."""
    method: str
    seed: int
    train_examples: int
    best: float
    """Dev score of the best epoch, percent; NaN where the run has none."""
    last: float
    """Score of the last epoch."""
    std: float
    """Standard deviation of s̄ at the end of training; NaN where the run diverged."""
    std_in_range: float
    """The same, over the entries in the paper's range alone."""
    gini: float
    entropy: float


_MEASURES = ("best", "last", "std", "std_in_range", "gini", "entropy")


def draw_data_share(
    points: Sequence[SharePoint],
    methods: Sequence[str],
    place: tuple[str, str, str],
    selection: Selection,
    stem: Path,
    held_out: bool | None = False,
) -> list[Path]:
    """Draw score and standard deviation of s̄, one above the other, a line per method.

    Args:
        points: Every run.
        methods: In the table's order.
        place: Encoder, task and metric.
        selection: Which score: ``best`` or ``last``.
        stem: Path of the files without suffix.
        held_out: Whether held-out rows chose the best epochs, as ``chosen_held_out`` tells it.

    Returns:
        The PNG, the PDF, and the CSVs of the means, of the runs and of the differences from each one's control.
    """
    encoder, task, metric = place
    shares = sorted({point.share for point in points})
    with plotting.style():
        figure, (above, below) = plotting.canvas(2, 1, plotting.COLUMN, 3.8, sharex=True)
        seeds = {point.seed for point in points}
        many = f": mean ± std, n = {len(seeds)}" if len(seeds) > 1 else ""
        plotting.heading(figure, f"{task_title(task)}, {encoder}{many}")
        above.set_ylabel(f"{metric_title(metric) or 'score'} (%), {selection_title(selection, held_out)}")
        below.set_ylabel(r"standard deviation of $\bar{s}$")
        below.set_xlabel("share of the training data (%)")
        for axis, measure in ((above, selection), (below, "std")):
            for number, method in enumerate(methods):
                _line(axis, [p for p in points if p.method == method], seeds, shares, measure, number)
            axis.grid()
        if len(shares) <= 12:
            below.set_xticks(shares, [f"{share:g}" for share in shares])
        plotting.legend_of_lines(figure, map(method_title, methods))
        files = plotting.save(figure, stem)
    return [
        *files,
        plotting.save_data(stem, _means(points, methods, shares)),
        plotting.save_data(stem.with_name(f"{stem.name}_runs"), _runs(points)),
        plotting.save_data(stem.with_name(f"{stem.name}_differences"), _differences(points, methods, shares)),
    ]


def _line(
    axis: Axes,
    points: Sequence[SharePoint],
    seeds: Collection[int],
    shares: Sequence[float],
    measure: str,
    number: int,
) -> None:
    """Draw the mean over all seeds of the figure; a share with other seeds would move it by itself, and has none."""
    by_seed: dict[int, dict[float, float]] = {seed: {} for seed in seeds}
    for point in points:
        by_seed[point.seed][point.share] = getattr(point, measure)
    values = np.array([[line.get(share, np.nan) for share in shares] for line in by_seed.values()])
    if points:
        plotting.mean_and_band(axis, shares, values, plotting.look(number))


def _means(points: Sequence[SharePoint], methods: Sequence[str], shares: Sequence[float]) -> list[list[object]]:
    names = [f"{measure}_{what}" for measure in _MEASURES for what in ("mean", "std")]
    rows: list[list[object]] = [["share_percent", "method", "train_examples", "n_seeds", *names]]
    for share in shares:
        for method in methods:
            some = [point for point in points if (point.share, point.method) == (share, method)]
            if not some:
                continue
            mean, std = plotting.mean_std(
                np.array([[getattr(point, measure) for measure in _MEASURES] for point in some])
            )
            spread = list(map(float, std)) if len(some) > 1 else [None] * len(_MEASURES)
            numbers = [value for pair in zip(map(float, mean), spread, strict=True) for value in pair]
            rows.append([share, method, some[0].train_examples, len(some), *numbers])
    return rows


def _runs(points: Sequence[SharePoint]) -> list[list[object]]:
    return [[field.name for field in fields(SharePoint)], *(list(asdict(point).values()) for point in points)]


def _differences(points: Sequence[SharePoint], methods: Sequence[str], shares: Sequence[float]) -> list[list[object]]:
    """Every method minus its control or plain fine-tuning at each share, over the seeds that both have."""
    rows: list[list[object]] = [
        ["share_percent", "method", "baseline", "measure", "pairs", "difference", "t_low", "t_high"]
    ]
    for share in shares:
        by_seed = {m: {p.seed: p for p in points if (p.share, p.method) == (share, m)} for m in methods}
        there = [method for method in methods if by_seed[method]]
        for method in there:
            other = baseline_of(method, there)
            theirs = by_seed.get(other, {}) if other is not None else {}
            both = [seed for seed in by_seed[method] if seed in theirs]
            if other is None or not both:
                continue
            for measure in _MEASURES:
                a, b = ({s: float(getattr(of[s], measure)) for s in both} for of in (by_seed[method], theirs))
                found = Difference.between(other, a, b)
                interval = found.interval
                rows.append([share, method, other, measure, found.n, found.mean, interval.low, interval.high])
    return rows
