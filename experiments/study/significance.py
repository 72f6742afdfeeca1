r"""Tests of every method of a study against its control, over seeds and over examples, on dev and on other sets.

    python -m experiments.study.significance runs --study results/bert-base-uncased/study.json
    python -m experiments.study.significance runs --baseline vanilla --selection last --out results/demo
    python -m experiments.study.significance runs --study results/robust/study.json --on anlir1_dev

Over seeds: mean difference with Student's and the BCa bootstrap interval, exact sign-flip test, almost stochastic
order. Over dev examples, from the stored predictions: bootstrap intervals of the task's own metric, McNemar's test.
Holm's correction over the comparisons of one encoder, selection rule and set. docs/statistics.md says what each one
assumes and how often it is wrong.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data_utils.command_line import CommandParser, status_of
from data_utils.errors import SettingError, shown
from experiments.study.arguments import add_run_arguments
from experiments.study.comparison.comparisons import SeedComparison, compare_seeds, pairs, together_and_alone
from experiments.study.comparison.example_comparisons import ExampleComparison, compare_examples
from experiments.study.comparison.text import comparisons_csv, markdown, seeds_csv
from experiments.study.statistics.intervals import RESAMPLES
from experiments.study.table.cells import SELECTIONS, Selection, Table
from experiments.study.table.which_runs import Runs
from experiments.study.texts import write_texts


@dataclass(frozen=True, slots=True)
class Significance:
    """All comparisons of a table."""

    seeds: tuple[SeedComparison, ...]
    examples: tuple[ExampleComparison, ...]
    """Empty when they were not asked for."""
    alone: tuple[tuple[str, str], ...]
    """(encoder, method) that has neither its control nor plain fine-tuning beside it, or no seed in common with it."""


def analyse(
    table: Table,
    runs: Path,
    baseline: str | None = None,
    selections: Sequence[Selection] = SELECTIONS,
    resamples: int = RESAMPLES,
    random_seed: int = 0,
    examples: bool = True,
    together: bool = False,
) -> Significance:
    """Compare every method of a table with its baseline, by the dev sets and by each other set that was scored.

    Args:
        table: As :func:`experiments.study.table.gathering.gather` reads it.
        runs: ``output_dir`` of its runs, where the predictions lie.
        baseline: One method for all; default: each one's control where the table has it, else plain fine-tuning.
        selections: Which epochs.
        resamples: Bootstrap samples.
        random_seed: Of the bootstrap: equal seeds give equal results.
        examples: Whether to compare over examples too, which reads every run's predictions.
        together: Whether to compare runs with several tasks with those that train each task alone.

    Raises:
        SettingError: nothing to compare, an unknown baseline, or predictions that do not belong to the results.
    """
    against = None
    if together:
        table, against = together_and_alone(table)
    judged = [(each, pairs(each, baseline, of, against)) for each, of in table.judgements(selections)]
    chosen = judged[0][1]
    if not chosen:
        raise SettingError(
            f"no two methods to compare with a seed in common; the table has {', '.join(table.methods) or 'no runs'}"
        )
    over_seeds = [c for each, some in judged for c in compare_seeds(each, some, resamples, random_seed)]
    over_examples = [
        c for each, some in judged if examples for c in compare_examples(each, runs, some, resamples, random_seed)
    ]
    compared = {(pair.encoder, name) for pair in chosen for name in (pair.method, pair.baseline)}
    every = [(encoder, method) for encoder in table.encoders for method in table.rows_of(encoder)]
    return Significance(tuple(over_seeds), tuple(over_examples), tuple(key for key in every if key not in compared))


def write_significance(found: Significance, out: Path) -> list[Path]:
    """Write ``significance.md``, ``significance.csv`` and ``significance_seeds.csv`` into a folder, made if missing."""
    texts = {
        "significance.md": markdown(found.seeds, found.examples, found.alone),
        "significance.csv": comparisons_csv(found.seeds, found.examples),
        "significance_seeds.csv": seeds_csv(found.seeds, found.examples),
    }
    return write_texts(out, texts)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = CommandParser(
        "python -m experiments.study.significance", __doc__, "\nExit status: 0 done, 2 a setting or file is wrong."
    )
    add_run_arguments(parser, "compare its cells and no others")
    parser.add_argument(
        "--baseline",
        help="compare every method with this one; default: with its control where there is one, else vanilla",
    )
    parser.add_argument(
        "--selection", choices=[*SELECTIONS, "both"], default="both", help="best or last epoch; default: %(default)s"
    )
    parser.add_argument(
        "--on", metavar="SET",
        help="by one set alone that is not in the score, of select_splits or --evaluate_on, such as anlir1_dev; "
        "default: by the dev sets, then by each of these",
    )  # fmt: skip
    parser.add_argument(
        "--together", action="store_true",
        help="compare runs with several tasks, task by task, with the method's runs on that task alone",
    )  # fmt: skip
    parser.add_argument("--no_examples", action="store_true", help="over seeds only; no predictions are read")
    parser.add_argument("--resamples", type=int, default=RESAMPLES, help="bootstrap samples; default: %(default)s")
    parser.add_argument("--random_seed", type=int, default=0, help="of the bootstrap; default: %(default)s")
    parser.add_argument(
        "--out", type=Path, help="folder for the Markdown and CSV files; default: print the Markdown only"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns 0, or 2 for a wrong setting or file."""
    chosen = build_parser().parse_args(arguments)
    return status_of(lambda: _tell(chosen))


def _tell(chosen: argparse.Namespace) -> None:
    if not 100 <= chosen.resamples <= 1_000_000:
        raise SettingError(f"--resamples is {chosen.resamples}; legal: 100 to 1000000; the default is {RESAMPLES}")
    table = Runs.of(chosen).table()
    selections: tuple[Selection, ...] = SELECTIONS if chosen.selection == "both" else (chosen.selection,)
    if chosen.on is not None:
        if chosen.on not in table.shown_sets or chosen.selection == "last":
            there = ", ".join(table.shown_sets) or "none"
            raise SettingError(f"--on {shown(chosen.on)}: legal: with best epochs, one of the sets scored: {there}")
        table, selections = table.on(chosen.on), ("best",)
    if chosen.together and chosen.baseline is not None:
        raise SettingError("--together compares each method with itself alone; drop --baseline")
    found = analyse(
        table, chosen.runs, chosen.baseline, selections, chosen.resamples, chosen.random_seed,
        examples=not chosen.no_examples, together=chosen.together,
    )  # fmt: skip
    print(markdown(found.seeds, found.examples, found.alone), end="")
    for path in write_significance(found, chosen.out) if chosen.out else []:
        print(path, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
