"""Comparisons as Markdown, for people, and as CSV, unrounded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from experiments.study.comparison.comparisons import AVERAGE, Pair, SeedComparison, families, family_of
from experiments.study.comparison.example_comparisons import ExampleComparison
from experiments.study.statistics.intervals import Interval
from experiments.study.statistics.paired_tests import LEVEL, seeds_needed, smallest_p
from experiments.study.table.cells import known_control
from experiments.study.table.markdown import interval_text, markdown_table
from experiments.study.table.titles import method_title, metric_title, selection_title, task_title
from experiments.study.texts import csv_text, number_text

LEGEND = """\
Points, method minus baseline, over the seeds that both have. Every p is two-sided. Holm: p corrected over the rows of
the table that have one; intervals are not corrected.

Over seeds: t is Student's 95 % interval of the mean difference, BCa the bootstrap's, p the exact sign-flip test's; ε is
the violation ratio of almost stochastic order, of all seeds of either method, and ε_min its 95 % upper bound, not
corrected: below 0.5 the method's scores are almost stochastically larger.

Over dev examples, the task's own metric: "these models" is the 95 % bootstrap interval over examples with the trained
models as they are, McNemar the exact test of their right and wrong answers. "New models" is the 95 % bootstrap
interval over examples and seeds both, with its p. These models say nothing of other seeds: a claim about a method needs
new ones.
"""


def what_n_shows(n: int, of_family: Sequence[int]) -> str:
    """A sentence with the smallest p of the sign-flip test on n seeds, and the seeds needed for 0.05.

    Args:
        n: Paired seeds.
        of_family: The paired seeds of every comparison in the family for Holm's correction.
    """
    comparisons = len(of_family)
    some = "1 paired seed" if n == 1 else f"{n} paired seeds"
    least = smallest_p(n)
    enough = seeds_needed()
    if least > LEVEL:
        text = f"{some} cannot go below p = {least:.3g}; {enough} can (p = {smallest_p(enough):.3g})."
    else:
        text = f"{some} can reach p = {least:.3g}."
    if comparisons > 1:
        needed = seeds_needed(comparisons)
        # Holm goes from the smallest p up: those with more seeds may go first, which leaves fewer to correct over.
        family = [smallest_p(seeds) for seeds in of_family]
        reached = min(1.0, max(p * sum(other >= p for other in family) for p in family if p <= least))
        text += (
            f" After Holm's correction over {comparisons} comparisons the smallest of them cannot be below "
            f"{reached:.3g}" + (f"; for {LEVEL} it takes {needed} seeds." if reached > LEVEL else ".")
        )
    return text


@dataclass(frozen=True, slots=True)
class Section:
    """The comparisons of one family (encoder, selection rule and set), before a format is chosen."""

    encoder: str
    title: str
    before: tuple[str, ...]
    """Sentences above the table."""
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    pairs: tuple[Pair, ...]
    """Of the rows."""
    after: tuple[str, ...]
    """Sentences below it."""


def sections(
    over_seeds: Sequence[SeedComparison], over_examples: Sequence[ExampleComparison], alone: Sequence[tuple[str, str]]
) -> list[Section]:
    """Arrange comparisons by encoder, selection rule and set; independent of the output format.

    Args:
        over_seeds: At least one comparison.
        over_examples: Of the same pairs or fewer.
        alone: (encoder, method) that nothing was compared with.
    """
    found: list[Section] = []
    for places in families([c.pair for c in over_seeds]):
        family = [over_seeds[i] for i in places]
        encoder, selection = family[0].pair.encoder, family[0].pair.selection
        chosen = {c.held_out for c in family}
        title = selection_title(selection, chosen.pop() if len(chosen) == 1 else None).capitalize()
        title += f", on {on}" if (on := family[0].pair.on) else ""
        of_family = [c.difference.n for c in family]
        before = [what_n_shows(n, of_family) for n in sorted(set(of_family))]
        names = [method_title(method) for where, method in alone if where == encoder]
        if names and not any(section.encoder == encoder for section in found):
            before.insert(0, f"Without anything to compare them with in this table: {', '.join(names)}.")
        found.append(
            Section(
                encoder, f"{title}, over seeds", tuple(before), _SEED_COLUMNS, tuple(_seed_row(c) for c in family),
                tuple(c.pair for c in family), tuple(_remarks(family)),
            )
        )  # fmt: skip
        shown = [c for c in over_examples if family_of(c.pair) == family_of(family[0].pair)]
        if shown:
            found.append(
                Section(
                    encoder, f"{title}, over {'its' if on else 'dev'} examples", (), _EXAMPLE_COLUMNS,
                    tuple(_example_row(c) for c in shown), tuple(c.pair for c in shown),
                    tuple(_example_remarks(shown)),
                )
            )  # fmt: skip
    return found


def markdown(
    over_seeds: Sequence[SeedComparison], over_examples: Sequence[ExampleComparison], alone: Sequence[tuple[str, str]]
) -> str:
    """All comparisons as Markdown, by encoder and selection rule; arguments as those of :func:`sections`."""
    parts = [LEGEND.strip()]
    encoder = None
    for section in sections(over_seeds, over_examples, alone):
        if section.encoder != encoder:
            encoder = section.encoder
            parts.append(f"## {encoder}")
        parts += [f"### {section.title}", *section.before, markdown_table(section.columns, section.rows)]
        parts += ["  \n".join(section.after)] if section.after else []
    return "\n\n".join(parts) + "\n"


_SEED_COLUMNS = ("comparison", "task", "n", "difference", "95 % t", "95 % BCa", "p", "p Holm", "ε", "ε_min")
_EXAMPLE_COLUMNS = (
    "comparison", "task", "examples", "seeds", "difference", "95 % these models", "p McNemar", "p Holm",
    "95 % new models", "p", "p Holm",
)  # fmt: skip


def _seed_row(c: SeedComparison) -> tuple[str, ...]:
    order = ("", "") if c.order is None else (number_text(c.order.violation), number_text(c.order.bound))
    return (
        _name(c.pair), _task(c.pair, c.metric), str(c.difference.n), number_text(c.difference.mean, signed=True),
        _interval(c.difference.interval), _interval(c.bca), _p(c.sign_flip.p), _p(c.p_holm), *order,
    )  # fmt: skip


def _example_row(c: ExampleComparison) -> tuple[str, ...]:
    return (
        _name(c.pair), _task(c.pair, c.metric), str(c.examples), str(len(c.by_seed)),
        number_text(c.difference, signed=True),
        _interval(c.these_models), _p(c.p_mcnemar), _p(c.p_mcnemar_holm), _interval(c.new_models), _p(c.p_bootstrap),
        _p(c.p_bootstrap_holm),
    )  # fmt: skip


def _remarks(family: Sequence[SeedComparison]) -> list[str]:
    """Sentences about undefined intervals, other baselines and tests that are not exact."""
    found: dict[str, list[str]] = {}
    for c in family:
        name = f"{_name(c.pair)} {_task(c.pair, c.metric)}"
        if c.bca.degenerate:
            what = "No interval" if math.isnan(c.bca.low) else "Not to be relied on"
            found.setdefault(f"{what}, {c.bca.degenerate}", []).append(name)
        if c.stops_unlike:
            found.setdefault("Stopped early by unlike patience, so not after the same training", []).append(name)
        if c.order is not None and (reason := c.order.degenerate):
            found.setdefault(f"{'No ε' if math.isnan(c.order.violation) else 'No ε_min'}, {reason}", []).append(name)
    remarks = [f"{reason}: {'; '.join(names)}." for reason, names in found.items()]
    others = {
        _name(c.pair): method_title(control)
        for c in family
        if (control := known_control(c.pair.method)) is not None and control != c.pair.baseline
    }
    if others:
        named = "; ".join(f"{name} ({control})" for name, control in others.items())
        remarks.append(f"Not compared with their own control: {named}.")
    if any(not c.sign_flip.exact for c in family):
        remarks.append("p with more than 20 seeds: of random sign flips, not of all.")
    return remarks


def _example_remarks(shown: Sequence[ExampleComparison]) -> list[str]:
    """Sentences about seeds without predictions, and intervals that cannot be given."""
    remarks = []
    for c in shown:
        name = f"{_name(c.pair)}, {_task(c.pair, c.metric)}"
        if c.without:
            seeds = f"{'seed' if len(c.without) == 1 else 'seeds'} {', '.join(map(str, c.without))}"
            remarks.append(f"{name}: without {seeds}, whose predictions were not kept.")
        reasons = dict.fromkeys(i.degenerate for i in (c.these_models, c.new_models) if i.degenerate)
        remarks += [f"{name}: no interval, {reason}." for reason in reasons]
    return remarks


def _name(pair: Pair) -> str:
    return f"{method_title(pair.method)} - {method_title(pair.baseline)}"


def _task(pair: Pair, metric: str) -> str:
    return AVERAGE if pair.task == AVERAGE else f"{task_title(pair.task)} {metric_title(metric)}"


def _interval(interval: Interval) -> str:
    return interval_text(interval) or "NaN"


def _p(p: float | None) -> str:
    if p is None:
        return "-"
    if math.isnan(p):
        return "NaN"
    return "<0.0001" if p < 0.0001 else f"{p:.4f}"


def comparisons_csv(over_seeds: Sequence[SeedComparison], over_examples: Sequence[ExampleComparison]) -> str:
    """A line per comparison; an undefined value is ``nan``, one that was not computed is empty."""
    by_pair = {c.pair: c for c in over_examples}
    rows: list[list[object]] = [
        ["encoder", "method", "baseline", "task", "metric", "selection", "on", "n", "difference", "std", "t_low",
         "t_high", "bca_low", "bca_high", "degenerate", "p_sign_flip", "exact", "smallest_p", "p_sign_flip_holm",
         "epsilon", "epsilon_min", "epsilon_undefined", "examples", "example_seeds", "example_difference",
         "these_models_low", "these_models_high", "p_mcnemar", "p_mcnemar_holm", "new_models_low",
         "new_models_high", "p_bootstrap", "p_bootstrap_holm", "without_predictions"]
    ]  # fmt: skip
    for c in over_seeds:
        d, order = c.difference, c.order
        row: list[object] = [
            *_key(c.pair), c.metric, c.pair.selection, c.pair.on, d.n, d.mean, d.std, d.interval.low, d.interval.high,
            c.bca.low, c.bca.high, c.bca.degenerate, c.sign_flip.p, c.sign_flip.exact, smallest_p(d.n), c.p_holm,
            *((order.violation, order.bound, order.undefined) if order is not None else (None,) * 3),
        ]  # fmt: skip
        e = by_pair.get(c.pair)
        row += [None] * 12 if e is None else [
            e.examples, len(e.by_seed), e.difference, e.these_models.low, e.these_models.high, e.p_mcnemar,
            e.p_mcnemar_holm, e.new_models.low, e.new_models.high, e.p_bootstrap, e.p_bootstrap_holm,
            " ".join(map(str, e.without)),
        ]  # fmt: skip
        rows.append(row)
    return csv_text(rows)


def seeds_csv(over_seeds: Sequence[SeedComparison], over_examples: Sequence[ExampleComparison]) -> str:
    """A line per comparison and seed, with the seed's own tests over dev examples."""
    by_seed = {(c.pair, one.seed): one for c in over_examples for one in c.by_seed}
    rows: list[list[object]] = [
        ["encoder", "method", "baseline", "task", "metric", "selection", "on", "seed", "difference", "low", "high",
         "only_method_right", "only_baseline_right", "p_mcnemar"]
    ]  # fmt: skip
    for c in over_seeds:
        for seed, points in c.difference.by_seed.items():
            one = by_seed.get((c.pair, seed))
            test = one.mcnemar if one is not None else None
            rows.append(
                [*_key(c.pair), c.metric, c.pair.selection, c.pair.on, seed, points,
                 *((one.interval.low, one.interval.high) if one is not None else (None, None)),
                 *((test.only_first, test.only_second, test.p) if test is not None else (None,) * 3)]
            )  # fmt: skip
    return csv_text(rows)


def _key(pair: Pair) -> list[object]:
    return [pair.encoder, pair.method, pair.baseline, pair.task]
