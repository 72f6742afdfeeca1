r"""Intermediate training: one task first, then others from its weights, beside the same runs without it.

    python -m experiments.study.intermediate --encoder all-MiniLM-L6-v2 --first mnli --then rte,mrpc,stsb \
        --methods vanilla,pats --data_dir data/canonical_data --devices cpu

The first task is trained once for each seed, by --first_method; then every method on every other task begins with the
run of its own seed (--first_seed: all with the run of that one). The table has each method with and without the first
task, at the same settings: those of the encoder's recipes. --set mnli.epochs=3 is for the first task alone. Writes
table and tests into <results_dir>/<name>/.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

from data_utils.command_line import CommandParser
from data_utils.errors import SettingError
from data_utils.names import check_name
from experiments.benchmark import Benchmark
from experiments.study.ablation import compute_variants, jobs_to_run
from experiments.study.arguments import add_place_arguments, add_seed_arguments
from experiments.study.comparison.comparisons import compare_seeds, pairs
from experiments.study.launch.job import Job
from experiments.study.launch.launcher import check_launcher
from experiments.study.launch.stopping import study_status
from experiments.study.launch.worker import RunFunction
from experiments.study.plan import make_job, names_of, parse_seeds
from experiments.study.recipe import Recipe, find_recipes, run_configs
from experiments.study.settings import parse_overrides
from experiments.study.significance import Significance, write_significance
from experiments.study.study import compute, list_failures, list_jobs
from experiments.study.table.markdown import markdown
from experiments.study.table.paper import load_paper
from experiments.study.table.titles import method_title, task_title
from experiments.study.tables import write_tables
from mt_dnn.config import RunConfig
from mt_dnn.run_id import run_dir
from mt_dnn.run_reference import EPOCHS, encoder_name


@dataclass(frozen=True, slots=True)
class Plan:
    """The runs of the command."""

    first: list[Job]
    """Of the first task."""
    rows: dict[str, list[Job]]
    """Row of the table -> its runs."""
    controls: dict[str, str]
    """Row of runs from the first task -> that of the same without it."""


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = CommandParser(
        "python -m experiments.study.intermediate",
        __doc__,
        "\nStarted again, it computes only what is missing. Exit status: as experiments.study.",
    )
    add = parser.add_argument
    add("--encoder", required=True, help="Hub name, local folder, all-MiniLM-L6-v2, or a run that is begun with")
    add("--first", required=True, metavar="TASK", help="the task to train first; mnli+qqp: several in one run")
    add("--then", required=True, metavar="TASK,...", help="the tasks to train from it")
    add("--methods", default="vanilla,pats", help="for these; default: %(default)s")
    add("--first_method", default="vanilla", metavar="METHOD", help="for the first task; default: %(default)s")
    add("--first_seed", metavar="SEED", help="one first run for all, of this seed; default: each seed has its own")
    add("--first_epoch", choices=EPOCHS, default="best", help="whose weights of the first run; default: %(default)s")
    add_seed_arguments(parser)
    add_place_arguments(parser, "<encoder>-<first>-first")
    return parser


def main(arguments: Sequence[str] | None = None, run: RunFunction | None = None) -> int:
    """Command line; returns the exit status. The workers call ``run``, :func:`mt_dnn.run.run` by default."""
    chosen = build_parser().parse_args(arguments)
    return study_status(lambda: _compare(chosen, run))


def plan(chosen: argparse.Namespace) -> Plan:
    """Make the runs of the command line.

    Raises:
        SettingError: an unknown task, method or setting, a missing file, or a first run that would keep no weights.
    """
    check_launcher(chosen)
    folders, seeds = Benchmark(chosen.task_def).places("recipes"), parse_seeds(chosen.seeds)
    (first_recipe,) = find_recipes(chosen.encoder, [_only("first_method", chosen.first_method)], None, folders)
    first_seeds = seeds
    if chosen.first_seed is not None:
        first_seeds = parse_seeds(f"{_only('first_seed', chosen.first_seed)},", "--first_seed")
    first = _configs(chosen, first_recipe, [_only("first", chosen.first)], first_seeds)
    if first[0].save not in (chosen.first_epoch, "both"):
        raise SettingError(
            f"save is {first[0].save}, but the weights of the {chosen.first_epoch} epoch of {chosen.first} are begun "
            f"with; give --set {first[0].task}.save=both, or another --first_epoch"
        )
    folder = run_dir(first[0]) if chosen.first_seed is not None else run_dir(first[0]).parent
    begun = str(folder) if chosen.first_epoch == EPOCHS[0] else f"{folder}:{chosen.first_epoch}"
    rows, controls = {}, {}
    for recipe in find_recipes(chosen.encoder, names_of("methods", chosen.methods), None, folders):
        control = method_title(recipe.method)
        label = f"{control}, {task_title(first[0].task)} first"
        controls[label] = control
        for name, encoder in ((control, chosen.encoder), (label, begun)):
            configs = _configs(chosen, replace(recipe, encoder=encoder), names_of("then", chosen.then), seeds)
            rows[name] = [replace(make_job(config, run_dir(config)), note=name) for config in configs]
    return Plan([make_job(config, run_dir(config)) for config in first], rows, controls)


def _only(flag: str, text: str) -> str:
    names = names_of(flag, text)
    if len(names) > 1:
        raise SettingError(f"--{flag} {text} names {len(names)}; give one")
    return names[0]


def _configs(chosen: argparse.Namespace, recipe: Recipe, tasks: list[str], seeds: Sequence[int]) -> list[RunConfig]:
    return run_configs(
        recipe, tasks, seeds, parse_overrides(chosen.overrides),
        task_def=chosen.task_def, data_dir=chosen.data_dir, output_dir=chosen.output_dir,
    )  # fmt: skip


def _compare(chosen: argparse.Namespace, run: RunFunction | None) -> int:
    planned = plan(chosen)
    if chosen.dry_run:
        return _list(planned)
    encoder = encoder_name(chosen.encoder)
    out = chosen.results_dir / check_name(
        "study", chosen.name or f"{encoder}-{planned.first[0].config.task}-first"[:100]
    )
    report, stopped = compute(planned.first, chosen, run)
    if stopped:
        return stopped
    list_failures(report)
    found = compute_variants(planned.rows, out, chosen, run, encoder)
    if isinstance(found, int):
        return found
    table, _, report = found
    files = write_tables(table, out)
    compared = [
        pair
        for label, control in planned.controls.items()
        if {label, control} <= set(table.rows_of(encoder))
        for pair in pairs(table, control)
        if pair.method == label
    ]
    if compared:
        files += write_significance(Significance(tuple(compare_seeds(table, compared)), (), ()), out)
    print(markdown(table, load_paper(table.benchmark)))
    print("\n".join(map(str, files)))
    list_failures(report)
    return 0 if table.complete else 1


def _list(planned: Plan) -> int:
    """Print the runs; those that begin with a run can be looked up only when that is there."""
    ready = all((job.folder / "result.json").is_file() for job in planned.first)
    waiting = [] if ready else [job for label in planned.controls for job in planned.rows[label]]
    later = {job.folder for job in waiting}
    list_jobs([job for job in (*planned.first, *jobs_to_run(planned.rows)) if job.folder not in later])
    for job in waiting:
        print(f"after the first task  {job.label}  {job.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
