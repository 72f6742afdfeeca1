r"""Few-shot fine-tuning: methods on small training sets, a table of sizes and seeds.

    python -m experiments.study.few_shot --encoder all-MiniLM-L6-v2 --methods vanilla,pac_tuning --sizes 16,32,100 \
        --tasks sst,rte --data_dir data/canonical_data --devices cpu

Every run trains on that many examples, equally many of every class, drawn anew for each seed: the same ones for all
methods, the smaller sets inside the larger. --as_they_come draws without regard to classes (and is for scores).
Settings are those of the encoder's recipes. Writes the table into <results_dir>/<name>/.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace

from data_utils.command_line import CommandParser
from data_utils.errors import SettingError, shown
from data_utils.names import check_name
from experiments.benchmark import Benchmark
from experiments.study.ablation import compute_variants, jobs_to_run
from experiments.study.arguments import add_place_arguments, add_seed_arguments
from experiments.study.launch.job import Job
from experiments.study.launch.launcher import check_launcher
from experiments.study.launch.stopping import study_status
from experiments.study.launch.worker import RunFunction
from experiments.study.plan import make_job, names_of, parse_seeds
from experiments.study.recipe import find_recipes, run_configs
from experiments.study.settings import parse_overrides
from experiments.study.study import list_failures, list_jobs
from experiments.study.table.markdown import markdown
from experiments.study.table.paper import load_paper
from experiments.study.table.titles import method_title
from experiments.study.tables import write_tables
from mt_dnn.run_id import run_dir
from mt_dnn.run_reference import encoder_name


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = CommandParser(
        "python -m experiments.study.few_shot",
        __doc__,
        "\nStarted again, it computes only what is missing. Exit status: as experiments.study.",
    )
    parser.add_argument("--encoder", required=True, help="Hub name, local folder or all-MiniLM-L6-v2")
    parser.add_argument("--methods", default="vanilla,pac_tuning", help="default: %(default)s")
    parser.add_argument("--sizes", required=True, help="numbers of training examples, such as 16,32,100")
    parser.add_argument("--tasks", required=True, help="names of tasks")
    parser.add_argument("--as_they_come", action="store_true", help="not equally many examples of every class")
    add_seed_arguments(parser)
    add_place_arguments(parser, "<encoder>-few-shot")
    return parser


def main(arguments: Sequence[str] | None = None, run: RunFunction | None = None) -> int:
    """Command line; returns the exit status. The workers call ``run``, :func:`mt_dnn.run.run` by default."""
    chosen = build_parser().parse_args(arguments)
    return study_status(lambda: _compare(chosen, run))


def parse_sizes(text: str) -> list[int]:
    """Read numbers of training examples such as ``16,32``.

    Raises:
        SettingError: one is no number above 0, or stands twice.
    """
    parts = names_of("sizes", text)
    if bad := [part for part in parts if not (part.isascii() and part.isdecimal() and len(part) < 10 and int(part))]:
        raise SettingError(f"--sizes {shown(text)}: {shown(bad[0])} is no number of examples, such as 16,32,100")
    return sorted(map(int, parts))


def _plan(chosen: argparse.Namespace) -> dict[str, list[Job]]:
    """Row of the table -> its runs."""
    check_launcher(chosen)
    folders = Benchmark(chosen.task_def).places("recipes")
    recipes = find_recipes(chosen.encoder, names_of("methods", chosen.methods), None, folders)
    jobs = {}
    for size in parse_sizes(chosen.sizes):
        given = {"train_size": size} | ({} if chosen.as_they_come else {"train_balanced": True})
        for recipe in recipes:
            configs = run_configs(
                recipe, names_of("tasks", chosen.tasks), parse_seeds(chosen.seeds),
                {**parse_overrides(chosen.overrides), **given}, task_def=chosen.task_def, data_dir=chosen.data_dir,
                output_dir=chosen.output_dir, origin="--sizes or --set",
            )  # fmt: skip
            label = f"{method_title(recipe.method)}, {size} examples"
            jobs[label] = [replace(make_job(config, run_dir(config)), note=label) for config in configs]
    return jobs


def _compare(chosen: argparse.Namespace, run: RunFunction | None) -> int:
    jobs_of = _plan(chosen)
    if chosen.dry_run:
        return list_jobs(jobs_to_run(jobs_of))
    out = chosen.results_dir / check_name("study", chosen.name or f"{encoder_name(chosen.encoder)}-few-shot"[:100])
    found = compute_variants(jobs_of, out, chosen, run)
    if isinstance(found, int):
        return found
    table, _, report = found
    files = write_tables(table, out)
    print(markdown(table, load_paper(table.benchmark)))
    print("\n".join(map(str, files)))
    list_failures(report)
    return 0 if table.complete else 1


if __name__ == "__main__":
    sys.exit(main())
