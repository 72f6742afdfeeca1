r"""Variants of methods against a baseline, task by task: the same data, budget and seeds, one thing changed at a time.

    python -m experiments.study.ablation pats_readings --data_dir data/canonical_data --devices cpu
    python -m experiments.study.ablation mine.yml --seeds 10 --tasks cola --set epochs=5

The file (a path, or a name in the folder ablations/ beside the task definitions) has

    encoder: all-MiniLM-L6-v2
    baseline: plain                               the variant that the others are compared with
    settings: {epochs: 3}                         of every run, as in a recipe
    tasks: {cola: {learning_rate: 3.0e-4}}        of one task
    variants:
      plain: {method: vanilla}                    method and settings of one variant
      loud: {method: pats, pats: {noise_scale: 2.0e-2}}

Writes into <results_dir>/<name>/: the table (table.md, .tex, .csv, table_seeds.csv), comparisons over seeds
(significance.md, .csv) and what each variant's method logged (logged.md, logged.csv).
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from data_utils.command_line import CommandParser
from data_utils.errors import SettingError, shown
from data_utils.json_file import write_json
from data_utils.names import check_name
from data_utils.yaml_file import read_yaml
from experiments.benchmark import DEFAULT, Benchmark
from experiments.study.arguments import add_place_arguments, add_seed_arguments
from experiments.study.comparison.comparisons import compare_seeds, pairs
from experiments.study.fields import Fields
from experiments.study.launch.job import Job
from experiments.study.launch.launcher import check_launcher
from experiments.study.launch.pool import Report
from experiments.study.launch.stopping import study_status
from experiments.study.launch.worker import RunFunction
from experiments.study.plan import cells_of, command_line, describe, make_job, names_of, parse_seeds
from experiments.study.recipe import Recipe, run_configs
from experiments.study.settings import check_method, check_settings, check_tasks, parse_overrides
from experiments.study.significance import Significance, write_significance
from experiments.study.study import compute, list_failures, list_jobs
from experiments.study.table.cells import Cell, Table
from experiments.study.table.contents import refuse_mixture
from experiments.study.table.gathering import finished_runs, gather, run_folders
from experiments.study.table.markdown import markdown, markdown_table
from experiments.study.table.paper import load_paper
from experiments.study.table.titles import task_title
from experiments.study.table.wanted import Wanted
from experiments.study.tables import write_tables
from experiments.study.texts import csv_text, write_texts
from mt_dnn.run_directory import RunDirectory
from mt_dnn.run_id import run_dir

_KEYS = ("encoder", "baseline", "settings", "tasks", "variants")


@dataclass(frozen=True, slots=True)
class Logged:
    """A value that a method logged, over the logged steps of each run; then the mean over the runs."""

    median: float
    """Not the mean: as the schedule goes to zero, a ratio to the update may grow without bound."""
    last: float
    """At the last logged step of a run."""


@dataclass(frozen=True, slots=True)
class Ablation:
    """Variants to compare, in the order of the file."""

    name: str
    encoder: str
    baseline: str
    """Label of the variant that the others are compared with."""
    variants: Mapping[str, Recipe]
    """Label -> its runs."""


def load_ablation(source: str, benchmark: Benchmark = DEFAULT) -> Ablation:
    """Read an ablation by its path or its name in the benchmark's ``ablations/``.

    Raises:
        SettingError: no such file, a missing or unknown key, or no such baseline.
    """
    folders = benchmark.places("ablations")
    candidates = [Path(source), *(folder / f"{source.removesuffix('.yml')}.yml" for folder in folders)]
    path = next((path for path in candidates if path.is_file()), None)
    if path is None:
        known = ", ".join(sorted({p.stem for folder in folders for p in folder.glob("*.yml")}))
        raise SettingError(f"no ablation {shown(source)}: give a file, or one of {known}")
    content = read_yaml(path)
    if set(content) != set(_KEYS):
        raise SettingError(
            f"{path}: it must have the keys {', '.join(_KEYS)}, the last three mappings, and has "
            f"{', '.join(content)[:200] or 'none'}"
        )
    fields = Fields(content, str(path))
    encoder, settings = fields.text("encoder"), fields.mapping("settings")
    tasks, variants = fields.mapping("tasks"), fields.mapping("variants")
    baseline = fields.get(
        "baseline", f"one of two or more variants: {', '.join(map(str, variants.values))[:500]}",
        lambda label: isinstance(label, Hashable) and label in variants.values and len(variants.values) > 1,
    )  # fmt: skip
    check_settings(settings.values, settings.where)
    check_tasks(tasks)
    recipes = {}
    for label in variants.values:
        own = variants.mapping(label)
        method, rest = own.text("method"), {key: value for key, value in own.values.items() if key != "method"}
        check_method(method, f"{own.where}: method")
        check_settings(rest, own.where)
        recipes[str(label)] = Recipe(
            name=check_name("ablation", path.stem), path=path, encoder=encoder, method=method,
            settings=settings.values, tasks={task: {**of_task, **rest} for task, of_task in tasks.values.items()},
            grid={}, chosen_from_grid=False, tried=None, source=f"{path.name}, {label}",
        )  # fmt: skip
    return Ablation(path.stem, encoder, str(baseline), recipes)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = CommandParser(
        "python -m experiments.study.ablation",
        __doc__,
        "\nStarted again, it computes only what is missing. Exit status: as experiments.study.",
    )
    parser.add_argument("ablation", help="file, or name in ablations/ beside the task definitions")
    parser.add_argument("--tasks", help="default: every task of the file")
    add_seed_arguments(parser)
    add_place_arguments(parser, "the file's name")
    return parser


def main(arguments: Sequence[str] | None = None, run: RunFunction | None = None) -> int:
    """Command line; returns the exit status. The workers call ``run``, :func:`mt_dnn.run.run` by default."""
    chosen = build_parser().parse_args(arguments)
    return study_status(lambda: _compare(load_ablation(chosen.ablation, Benchmark(chosen.task_def)), chosen, run))


def _compare(ablation: Ablation, chosen: argparse.Namespace, run: RunFunction | None) -> int:
    check_launcher(chosen)
    jobs_of = {label: _plan(label, recipe, chosen) for label, recipe in ablation.variants.items()}
    if chosen.dry_run:
        return list_jobs(jobs_to_run(jobs_of))
    out = chosen.results_dir / check_name("ablation", chosen.name or ablation.name)
    found = compute_variants(jobs_of, out, chosen, run)
    if isinstance(found, int):
        return found
    table, logged, report = found
    files = write_tables(table, out)
    files += write_texts(out, {"logged.md": logged_markdown(logged) + "\n", "logged.csv": logged_csv(logged)})
    compared = pairs(table, ablation.baseline)
    if compared:
        files += write_significance(Significance(tuple(compare_seeds(table, compared)), (), ()), out)
    print(markdown(table, load_paper(table.benchmark)))
    print(logged_markdown(logged), "\n")
    print("\n".join(map(str, files)))
    list_failures(report)
    return 0 if table.complete else 1


def jobs_to_run(jobs_of: Mapping[str, Sequence[Job]]) -> list[Job]:
    """The jobs of all variants, each once."""
    return list({job.folder: job for some in jobs_of.values() for job in some}.values())


def compute_variants(
    jobs_of: Mapping[str, Sequence[Job]],
    out: Path,
    chosen: argparse.Namespace,
    run: RunFunction | None,
    encoder: str | None = None,
) -> tuple[Table, dict[tuple[str, str], dict[str, Logged]], Report] | int:
    """Run what is missing of a comparison of variants, and gather it.

    Args:
        jobs_of: Label of a variant, a row of the table -> its runs.
        out: Folder of the comparison, made here; ``study.json`` is written there first.
        chosen: The command line.
        run: Of the workers.
        encoder: As in :func:`read_variants`.

    Returns:
        Table, logged values and report of the runs; or the exit status, where the runs were stopped.
    """
    out.mkdir(parents=True, exist_ok=True)
    cells = {label: cells_of(some) for label, some in jobs_of.items()}
    write_json(out / "study.json", describe(chosen, variants=cells))
    report, stopped = compute(jobs_to_run(jobs_of), chosen, run)
    if stopped:
        return stopped
    table, logged = read_variants(cells, chosen.output_dir, encoder)
    return replace(table, command=command_line()), logged, report


def _plan(label: str, recipe: Recipe, chosen: argparse.Namespace) -> list[Job]:
    tasks = [] if chosen.tasks is None else names_of("tasks", chosen.tasks)
    configs = run_configs(
        recipe, tasks, parse_seeds(chosen.seeds), parse_overrides(chosen.overrides),
        task_def=chosen.task_def, data_dir=chosen.data_dir, output_dir=chosen.output_dir,
    )  # fmt: skip
    return [replace(make_job(config, run_dir(config)), note=label) for config in configs]


def read_variants(
    cells: Mapping[str, Sequence[Mapping[str, Any]]], runs: Path, as_encoder: str | None = None
) -> tuple[Table, dict[tuple[str, str], dict[str, Logged]]]:
    """Gather the runs of every variant.

    Args:
        cells: Label -> its cells, as ``study.json`` has them.
        runs: ``output_dir`` of the runs.
        as_encoder: Name under which all variants stand together, if the encoder is what they differ in.

    Returns:
        A table whose methods are the labels; and (task, label) -> name -> what the method logged.
    """
    found: dict[tuple[str, str, str], Cell] = {}
    logged: dict[tuple[str, str], dict[str, Logged]] = {}
    whole = Table({}, (), (), ())
    for label, some in cells.items():
        whole = gather(runs, Wanted.of(some))
        for (encoder, _, task), cell in whole.cells.items():
            found[as_encoder or encoder, label, task] = replace(cell, method=label)
            folders = run_folders(cell, runs)
            logged[task, label] = _logged([RunDirectory(folders[r.seed]).read_metrics(r) for r in cell.results])
    refuse_mixture(run for cell in found.values() for run in finished_runs(cell, runs))
    encoders = whole.encoders if as_encoder is None else (as_encoder,)
    return Table(found, encoders, tuple(cells), whole.tasks), logged


def _logged(of_runs: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, Logged]:
    runs: dict[str, list[tuple[float, float]]] = {}
    for records in of_runs:
        values: dict[str, list[float]] = {}
        for record in records:
            for key, value in record.items():
                _, slash, name = key.partition("/")
                if slash and isinstance(value, float | int):
                    values.setdefault(name, []).append(float(value))
        for name, some in values.items():
            runs.setdefault(name, []).append((float(np.median(some)), some[-1]))
    return {
        name: Logged(*(math.fsum(column) / len(column) for column in zip(*some, strict=True)))
        for name, some in runs.items()
    }


def logged_csv(logged: Mapping[tuple[str, str], Mapping[str, Logged]]) -> str:
    """Long form: task, variant, name, median, last."""
    rows: list[list[object]] = [["task", "variant", "name", "median", "last"]]
    rows += [
        [task, label, name, value.median, value.last]
        for (task, label), found in logged.items()
        for name, value in found.items()
    ]
    return csv_text(rows)


def logged_markdown(logged: Mapping[tuple[str, str], Mapping[str, Logged]]) -> str:
    """A table of the logged values, a column per name: the median step's value and the last one's."""
    names = sorted({name for found in logged.values() for name in found})
    rows = [
        [task_title(task), label, *(_logged_text(found.get(name)) for name in names)]
        for (task, label), found in sorted(logged.items(), key=lambda item: item[0][0])
    ]
    table = markdown_table(["task", "variant", *names], rows)
    return f"Logged: each run's median step, in brackets its last; mean over the runs.\n\n{table}"


def _logged_text(value: Logged | None) -> str:
    return "-" if value is None else f"{value.median:z.3g} ({value.last:z.3g})"


if __name__ == "__main__":
    sys.exit(main())
