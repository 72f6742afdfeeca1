"""Every method of a table against its baseline over the dev examples that both predicted."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from data_utils.errors import SettingError
from data_utils.task_def import Metric
from experiments.study.comparison.comparisons import AVERAGE, Pair, correct
from experiments.study.comparison.predictions import Predictions, read_predictions
from experiments.study.statistics.example_bootstrap import is_regression, resampled_scores
from experiments.study.statistics.intervals import Interval, bootstrap_p, percentile_interval
from experiments.study.statistics.paired_tests import McNemar, mcnemar, pooled_mcnemar
from experiments.study.table.cells import Selection, Table
from module.seeds import stream_seed
from mt_dnn.results import MEAN

Runs = dict[tuple[str, int], dict[str, Predictions]]
"""(method, seed) -> dev set -> predictions."""


@dataclass(frozen=True, slots=True)
class SeedExamples:
    """One seed's two models on the same dev examples."""

    seed: int
    difference: float
    """Points of the task's metric, method minus baseline."""
    interval: Interval
    """Examples drawn anew."""
    mcnemar: McNemar | None
    """Of right and wrong answers; None in a regression, and where one of the two has no score."""


@dataclass(frozen=True, slots=True)
class ExampleComparison:
    """One pair of methods over the dev examples and the seeds that both have predictions of."""

    pair: Pair
    metric: str
    examples: int
    """Over all dev sets of the task."""
    difference: float
    """Points, mean over the seeds."""
    these_models: Interval
    """Examples drawn anew, the seeds' models as they are."""
    new_models: Interval
    """Examples and seeds drawn anew; NaN with one seed."""
    p_bootstrap: float
    """Of ``new_models``."""
    p_bootstrap_holm: float
    p_mcnemar: float | None
    """McNemar's test over all seeds (:func:`pooled_mcnemar`), of these models; None for a regression."""
    p_mcnemar_holm: float | None
    by_seed: tuple[SeedExamples, ...]
    without: tuple[int, ...]
    """Seeds whose scores are in the table but whose predictions were not kept; they are not in."""


def compare_examples(
    table: Table,
    runs: Path,
    chosen: Sequence[Pair],
    resamples: int,
    random_seed: int,
) -> list[ExampleComparison]:
    """Compare pairs over examples.

    Args:
        table: The table.
        runs: ``output_dir`` of its runs.
        chosen: Its pairs; averages and means over tasks are left out, and pairs without any stored predictions.
        resamples: Bootstrap samples R. All methods of a task are scored on the same ones.
        random_seed: Of the bootstrap; the draws of a dev set depend on it, on the set's name and size alone.

    Raises:
        SettingError: predictions that are damaged or are not of the run's score, or two runs of a task that were scored
            on different examples.
    """
    found: dict[Pair, ExampleComparison] = {}
    of_one_task = [p for p in chosen if p.task != AVERAGE and table.metric(p.task) != MEAN]
    groups = dict.fromkeys((p.encoder, p.task, p.selection) for p in of_one_task)
    bar = tqdm(groups, unit="task", disable=not sys.stderr.isatty(), leave=False)
    for encoder, task, selection in bar:
        bar.set_description(f"{encoder} {task} {selection}")
        group = [p for p in chosen if (p.encoder, p.task, p.selection) == (encoder, task, selection)]
        methods = list(dict.fromkeys(name for p in group for name in (p.method, p.baseline)))
        metric = table.metric(task)
        if metric not in list(Metric):
            raise SettingError(
                f"{task}: its runs were scored by different metrics, {metric}; use one --task_def for all"
            )
        predictions = _read_all(table, runs, encoder, methods, task, selection)
        drawn = _draw(predictions, Metric(metric), resamples, random_seed) if predictions else {}
        for pair in group:
            compared = _compare(table, pair, metric, predictions, drawn, random_seed)
            if compared is not None:
                found[pair] = compared
    return _corrected([found[pair] for pair in chosen if pair in found])


def _read_all(table: Table, runs: Path, encoder: str, methods: Sequence[str], task: str, selection: Selection) -> Runs:
    found: Runs = {}
    for method in methods:
        cell = table.cells[encoder, method, task]
        for result in cell.results:
            one = read_predictions(runs, cell, result, selection) if result.done else None
            if one is not None:
                found[method, result.seed] = one
    first = next(iter(found.values()), None)
    for (method, seed), one in found.items():
        assert first is not None
        if not _same_examples(one, first):
            raise SettingError(
                f"{encoder}, {task}: {method} seed {seed} was scored on other dev examples or labels than "
                f"{next(iter(found))[0]} seed {next(iter(found))[1]}; run both on one data_dir"
            )
    return found


def _same_examples(a: Mapping[str, Predictions], b: Mapping[str, Predictions]) -> bool:
    return list(a) == list(b) and all(
        np.array_equal(a[name].uids, b[name].uids) and np.array_equal(a[name].labels, b[name].labels) for name in a
    )


def _draw(
    predictions: Runs, metric: Metric, resamples: int, random_seed: int
) -> dict[tuple[str, int], NDArray[np.float64]]:
    """(method, seed) -> (R,) scores on bootstrap samples, the mean over the dev sets as in the table."""
    first = next(iter(predictions.values()))
    scores = np.zeros((resamples, len(predictions)))
    for dataset, one in first.items():
        rng = np.random.default_rng(stream_seed(random_seed, f"examples/{dataset}"))
        predicted = np.stack([run[dataset].predicted for run in predictions.values()])  # (S, N)
        scores += resampled_scores(metric, predicted, one.labels, resamples, rng) / len(first)
    return {key: scores[:, i] for i, key in enumerate(predictions)}


def _compare(
    table: Table,
    pair: Pair,
    metric: str,
    predictions: Runs,
    drawn: Mapping[tuple[str, int], NDArray[np.float64]],
    random_seed: int,
) -> ExampleComparison | None:
    difference = table.minus(pair.encoder, pair.method, pair.baseline, pair.task, pair.selection)
    assert difference is not None, "pairs() lists those that have a difference"
    keys = {seed: ((pair.method, seed), (pair.baseline, seed)) for seed in difference.by_seed}
    stored = [seed for seed, both in keys.items() if all(key in predictions for key in both)]
    # A run without a score has nothing to resample, and leaving it out would flatter its method: it makes all NaN.
    there = [seed for seed, points in difference.by_seed.items() if seed in stored or math.isnan(points)]
    if not there or not drawn:
        return None
    classes = not is_regression(Metric(metric))
    resampled = np.full((len(next(iter(drawn.values()))), len(there)), math.nan)
    by_seed, net = [], []
    for i, seed in enumerate(there):
        test = None
        if seed in stored:
            resampled[:, i] = drawn[keys[seed][0]] - drawn[keys[seed][1]]
            if classes:
                ours, theirs = (_right(predictions[key]) for key in keys[seed])
                test = mcnemar(ours, theirs)
                net.append(ours.astype(np.int64) - theirs)
        by_seed.append(SeedExamples(seed, difference.by_seed[seed], percentile_interval(resampled[:, i]), test))
    p_mcnemar = None
    if classes:
        p_mcnemar = pooled_mcnemar(np.sum(net, axis=0)) if len(net) == len(there) else math.nan
    new = draw_seeds(resampled, random_seed)
    p = bootstrap_p(new)
    return ExampleComparison(
        pair=pair, metric=metric, examples=sum(len(one.uids) for one in next(iter(predictions.values())).values()),
        difference=math.fsum(difference.by_seed[seed] for seed in there) / len(there),
        these_models=percentile_interval(resampled.mean(axis=1)),
        new_models=_new_models(new, len(there)), p_bootstrap=p, p_bootstrap_holm=p, p_mcnemar=p_mcnemar,
        p_mcnemar_holm=p_mcnemar, by_seed=tuple(by_seed),
        without=tuple(seed for seed in keys if seed not in there),
    )  # fmt: skip


def _right(run: Mapping[str, Predictions]) -> NDArray[np.bool_]:
    """(N,) whether each example of all dev sets is right."""
    return np.concatenate([one.predicted == one.labels for one in run.values()])


def draw_seeds(resampled: NDArray[np.float64], random_seed: int) -> NDArray[np.float64]:
    """Draw the seeds anew too, for each bootstrap sample of the examples.

    Seeds and examples are crossed (every seed is scored on every example), so the two are drawn independently and an
    example that is drawn twice is so for every seed: the pigeonhole bootstrap (Owen 2007).

    Args:
        resampled: (R, seeds) differences on the samples of the examples.
        random_seed: Of the draws.

    Returns:
        (R,) means over the drawn seeds; NaN with one seed.
    """
    count, seeds = resampled.shape
    if seeds < 2:
        return np.full(count, math.nan)
    rng = np.random.default_rng(stream_seed(random_seed, "seeds of examples"))
    drawn = rng.integers(seeds, size=resampled.shape)
    return np.asarray(np.take_along_axis(resampled, drawn, axis=1).mean(axis=1))


def _new_models(new: NDArray[np.float64], seeds: int) -> Interval:
    interval = percentile_interval(new)
    return replace(interval, degenerate="fewer than two seeds have no spread") if seeds < 2 else interval


def _corrected(compared: Sequence[ExampleComparison]) -> list[ExampleComparison]:
    bootstrap = correct([c.pair for c in compared], [c.p_bootstrap for c in compared])
    classes = [c for c in compared if c.p_mcnemar is not None]
    of_classes = correct([c.pair for c in classes], [c.p_mcnemar for c in classes if c.p_mcnemar is not None])
    p_mcnemar = {c.pair: p for c, p in zip(classes, of_classes, strict=True)}
    return [
        replace(c, p_bootstrap_holm=p, p_mcnemar_holm=p_mcnemar.get(c.pair))
        for c, p in zip(compared, bootstrap, strict=True)
    ]
