r"""Many runs and their table: recipes x tasks x seeds, on all devices of this machine.

    python -m experiments.glue.study --encoder bert-base-uncased --data_dir data/canonical_data --devices 0,1,2,3
    python -m experiments.glue.study --encoder all-MiniLM-L6-v2 --methods vanilla,pats --tasks cola,rte --seeds 2 \
        --set epochs=3 --data_dir data/canonical_data --devices cpu
    python -m experiments.glue.study --recipes mine.yml --tasks cola --dry_run      list the runs, done and missing
    python -m experiments.glue.study --encoder all-MiniLM-L6-v2 --methods vanilla,pats --tasks rte --search sobol \
        --trials 9                          choose settings from the recipes' grids; docs/search.md
    python -m experiments.glue.study --encoder roberta-large --launcher ray --gpus_per_run 0.5       on a Ray cluster

Started again, it computes only what is missing; stopped or killed, the same command goes on. Several studies may
share one runs folder at the same time: no run is done twice.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from data_utils.atomic import write_text_atomic
from data_utils.errors import SettingError
from data_utils.names import check_name, slug
from experiments.glue.cells import TASK_ORDER, Table, Wanted, gather
from experiments.glue.display import StudyDisplay
from experiments.glue.launcher import add_launcher_arguments, check_launcher, launch, retries
from experiments.glue.paper import load_paper
from experiments.glue.pool import Job, Pool, PoolError, Report
from experiments.glue.recipe import (
    Recipe,
    check_budgets,
    find_recipes,
    parse_overrides,
    resolve_recipes,
    run_configs,
)
from experiments.glue.render import markdown
from experiments.glue.search import run_search
from experiments.glue.search_arguments import add_search_arguments
from experiments.glue.tables import write_tables
from experiments.glue.worker import RunFunction
from module.methods import control_of
from mt_dnn.config import GLUE_TASK_DEF, RunConfig, run_dir, run_id
from mt_dnn.data import open_datasets
from mt_dnn.results import RunDirectory

STOPPED = 75  # EX_TEMPFAIL: started again, it goes on
KILLED = 128 + signal.SIGINT


def build_parser(module: str = "study", text: str = __doc__, tasks: str | None = None) -> argparse.ArgumentParser:
    """The command line.

    Args:
        module: Name in ``experiments/glue`` that it belongs to.
        text: That module's text: a description, an empty line, examples.
        tasks: Default of ``--tasks``; None: every task of the recipes.
    """
    description, _, examples = text.partition("\n\n")
    parser = argparse.ArgumentParser(
        prog=f"python -m experiments.glue.{module}",
        description=description,
        epilog=examples + "\nExit status: 0 every run of the table is there, 1 some failed or are missing, 2 a setting "
        "or file is wrong, 75 stopped by\na signal after checkpoints (start it again to go on), 130 killed by a "
        "second Ctrl-C.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_argument_group("what to run")
    what.add_argument("--encoder", help="Hub name, local folder or all-MiniLM-L6-v2; finds recipes/<encoder>_<method>")
    what.add_argument("--methods", default="vanilla,noisytune,sage,pats", help="with --encoder; default: %(default)s")
    what.add_argument("--recipe_base", help="take this encoder's recipes for an --encoder that has none of its own")
    what.add_argument("--recipes", help="recipe names or files, instead of --encoder and --methods")
    what.add_argument("--tasks", default=tasks, help=f"default: {tasks or 'every task of the recipes'}")
    what.add_argument("--seeds", default="5", help="5 is the seeds 1 to 5; 3,7,11 those three; default: %(default)s")
    what.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides",
        help="override a setting of every recipe, such as epochs=3, pats.noise_scale=8e-3 or, for one task, "
        "cola.epochs=5; may be repeated",
    )  # fmt: skip
    what.add_argument(
        "--controls", action="store_true",
        help="add what each method is to be compared with: plain fine-tuning with the same changes of protocol",
    )  # fmt: skip
    what.add_argument(
        "--unequal_grids", action="store_true",
        help="compare methods although their settings were chosen from grids of different sizes, or --search with "
        "unequal numbers of trials; the tables show them",
    )  # fmt: skip
    what.add_argument("--dry_run", action="store_true", help="list the runs, done and missing, and stop")
    what.add_argument(
        "--holdout", type=float, metavar="SHARE",
        help="hold this share of the training set out, the same rows in every run, and choose epochs (and with "
        "--search settings) by the score on it, so that the dev score was not selected on",
    )  # fmt: skip
    add_search_arguments(parser)
    add_place_arguments(parser)
    return parser


def add_place_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that say where data, runs and results lie, and where to compute."""
    where = parser.add_argument_group("where")
    where.add_argument("--data_dir", type=Path, default=Path("data/canonical_data"), help="default: %(default)s")
    where.add_argument("--task_def", type=Path, default=GLUE_TASK_DEF, help="task definitions; default: GLUE's")
    where.add_argument("--output_dir", type=Path, default=Path("runs"), help="folder of the runs; default: %(default)s")
    where.add_argument("--results_dir", type=Path, default=Path("results"), help="default: %(default)s")
    where.add_argument("--name", help="folder in --results_dir; default: the encoders' names")
    add_launcher_arguments(parser)


def main(arguments: Sequence[str] | None = None, run: RunFunction | None = None) -> int:
    """Run a study; see the module's text.

    Args:
        arguments: Command line; default the process's.
        run: What a worker calls for each run; default :func:`mt_dnn.run.run`.

    Returns:
        The exit status.
    """
    chosen = build_parser().parse_args(arguments)
    try:
        return run_study(chosen, run)
    except (SettingError, OSError, PoolError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def run_study(
    chosen: argparse.Namespace, run: RunFunction | None, figures: Callable[[Table, Path], list[Path]] | None = None
) -> int:
    """Compute what is missing of a study, then write its table and figures; arguments as in :func:`main`.

    Args:
        chosen: The command line.
        run: What a worker calls for each run; None: :func:`mt_dnn.run.run`.
        figures: Draws the table's figures into a folder and returns their files; None: the seed strips.
    """
    jobs = plan_jobs(chosen)
    if chosen.search is not None:
        out = chosen.results_dir / (study_name(chosen, jobs) + ("" if chosen.name else "-search"))
        return run_search(
            _recipes(chosen), jobs, _overrides(chosen), out, chosen, functools.partial(_compute, chosen, run)
        )
    if chosen.dry_run:
        return list_jobs(jobs)
    out = chosen.results_dir / study_name(chosen, jobs)
    study_json = out / "study.json"
    out.mkdir(parents=True, exist_ok=True)
    write_text_atomic(study_json, json.dumps(describe(jobs, chosen), indent=2) + "\n")
    report, stopped = compute(jobs, chosen, run)
    if stopped:
        return stopped
    table = gather(chosen.output_dir, Wanted.read(study_json))
    return conclude(table, out, report, figures or _figures)


def list_jobs(jobs: Sequence[Job]) -> int:
    """Print the runs, done and missing; returns 0."""
    todo = [job for job in jobs if not is_done(job)]
    for job in jobs:
        print(f"{'missing' if job in todo else 'done   '}  {job.label}  {job.folder}")
    steps = sum(job.steps for job in todo)
    print(f"{len(jobs)} runs: {len(jobs) - len(todo)} done, {len(todo)} missing with {steps} steps")
    return 0


def compute(jobs: Sequence[Job], chosen: argparse.Namespace, run: RunFunction | None) -> tuple[Report, int]:
    """Compute those of the runs that are not done.

    Returns:
        What became of them, and 0 or the exit status after a signal.
    """
    todo = [job for job in jobs if not is_done(job)]
    return _compute(chosen, run, todo, len(jobs)) if todo else (Report(done=0), 0)


def _compute(
    chosen: argparse.Namespace,
    run: RunFunction | None,
    todo: Sequence[Job],
    total: int,
    wrap: Callable[[RunFunction], RunFunction] | None = None,
) -> tuple[Report, int]:
    """Compute runs, of so many altogether; returns the report, and the exit status of a stop by a signal or 0."""
    run = run or _train_run()
    with launch(chosen, wrap(run) if wrap is not None else run, todo) as crew:
        print(f"{len(todo)} of {total} runs to do, {crew.summary}", file=sys.stderr)
        _prepare(todo)
        with StudyDisplay(todo) as display:
            pool = Pool(crew, display, retries(chosen))
            report = pool.compute(todo)
    if not report.stopped:
        return report, 0
    print("stopped; the same command goes on", file=sys.stderr)
    return report, KILLED if pool.killed else STOPPED


def conclude(table: Table, out: Path, report: Report, figures: Callable[[Table, Path], list[Path]]) -> int:
    """Write and print the table, list the failures.

    Returns:
        0 if every cell has all its seeds, else 1.
    """
    files = write_tables(table, out)
    files += figures(table, out)
    print(markdown(table, load_paper()))
    print("\n".join(str(path) for path in files))
    list_failures(report)
    return 0 if table.complete else 1


def list_failures(report: Report) -> None:
    """Name the runs that failed, with the reason, on standard error."""
    for job, error in report.failures:
        print(f"failed: {job.label}: {error} ({job.folder})", file=sys.stderr)


def plan_jobs(chosen: argparse.Namespace) -> list[Job]:
    """All runs of the study: recipes x tasks x seeds.

    Raises:
        SettingError: an unknown recipe, task, seed or setting, or two recipes for the same cell.
    """
    check_launcher(chosen)
    overrides = _overrides(chosen)
    recipes = _recipes(chosen)
    if not chosen.unequal_grids and chosen.search is None:  # a search chooses the settings anew
        check_budgets(recipes)
    seeds = _search_seeds(chosen) if chosen.search is not None else parse_seeds(chosen.seeds)
    groups = dict.fromkeys(part for recipe in recipes for part in recipe.method.split("+"))
    groups |= dict.fromkeys(task for recipe in recipes for task in _tasks(chosen, recipe))
    for key in overrides:
        if "." in key and key.partition(".")[0] not in groups:
            raise SettingError(f"--set {key}: neither a method nor a task of this study; here: {', '.join(groups)}")
    configs: dict[Path, RunConfig] = {}
    cells: dict[tuple[str, str, str], Recipe] = {}
    for recipe in recipes:
        made = run_configs(
            recipe, _tasks(chosen, recipe), seeds, overrides,
            task_def=chosen.task_def, data_dir=chosen.data_dir, output_dir=chosen.output_dir,
        )  # fmt: skip
        for config in made:
            other = cells.setdefault((config.encoder, config.method, config.task), recipe)
            if other is not recipe:
                raise SettingError(f"{other.path} and {recipe.path} both set {config.method} on {config.encoder}")
            configs[run_dir(config)] = config
    trials = {(r.encoder, r.method): r.trials for r in recipes}
    by_name = {(slug(encoder), method): n for (encoder, method), n in trials.items()}
    return [make_job(c, folder, by_name[c.encoder, c.method]) for folder, c in configs.items()]


def parse_seeds(text: str) -> list[int]:
    """``"5"`` -> 1 to 5; ``"3,7,11"`` -> those.

    Raises:
        SettingError: anything else.
    """
    parts = [part for part in text.split(",") if part.strip()]
    if not parts or not all(part.strip().isdecimal() for part in parts) or ("," not in text and int(text) < 1):
        raise SettingError(f"--seeds {text!r}: give a count such as 5, or seeds such as 3,7,11 (3, is the one seed 3)")
    seeds = [int(part) for part in parts]
    return list(dict.fromkeys(seeds)) if "," in text else list(range(1, seeds[0] + 1))


def _overrides(chosen: argparse.Namespace) -> dict[str, Any]:
    overrides = parse_overrides(chosen.overrides)
    return overrides if chosen.holdout is None else {**overrides, "holdout": chosen.holdout}


def _search_seeds(chosen: argparse.Namespace) -> list[int]:
    seeds = parse_seeds(chosen.search_seeds)
    if both := sorted(set(seeds) & set(parse_seeds(chosen.seeds))):
        raise SettingError(
            f"--search_seeds {chosen.search_seeds}: {both[0]} is one of --seeds {chosen.seeds} too, so the table of "
            "the chosen settings would report what they were chosen on; give other seeds, such as 101,"
        )
    return seeds


def study_name(chosen: argparse.Namespace, jobs: Sequence[Job]) -> str:
    """Folder of the study's results: ``--name``, or its encoders."""
    return check_name("study", chosen.name or "+".join(sorted({job.config.encoder for job in jobs}))[:100])


def describe(jobs: Sequence[Job], chosen: argparse.Namespace) -> dict[str, Any]:
    """What ``study.json`` holds: the cells with their run ids and seeds."""
    seeds: dict[tuple[str | int, ...], list[int]] = {}
    for job in jobs:
        c = job.config
        seeds.setdefault((c.encoder, c.method, c.task, run_id(c), c.recipe or "", job.trials), []).append(c.seed)
    keys = ("encoder", "method", "task", "run_id", "recipe", "trials")
    return {
        "output_dir": str(chosen.output_dir),
        "command": shlex.join(sys.argv),
        "cells": [{**dict(zip(keys, cell, strict=True)), "seeds": s} for cell, s in seeds.items()],
    }


def _recipes(chosen: argparse.Namespace) -> list[Recipe]:
    if (chosen.encoder is None) == (chosen.recipes is None):
        raise SettingError("give --encoder (and --methods) or --recipes, one of the two")
    if chosen.recipes is not None and chosen.controls:
        raise SettingError("--controls finds recipes by --encoder and --methods; list the controls' --recipes yourself")
    if chosen.recipes is not None:
        return resolve_recipes(_names(chosen.recipes))
    methods = _names(chosen.methods)
    if chosen.controls:
        methods = list(dict.fromkeys([*(c for m in methods if (c := control_of(m)) is not None), *methods]))
    return find_recipes(chosen.encoder, methods, chosen.recipe_base)


def _tasks(chosen: argparse.Namespace, recipe: Recipe) -> list[str]:
    if chosen.tasks is not None:
        return _names(chosen.tasks)
    return sorted(recipe.tasks, key=lambda task: (*TASK_ORDER, task).index(task))


def _names(text: str) -> list[str]:
    return list(dict.fromkeys(name for part in text.split(",") if (name := part.strip())))


def make_job(config: RunConfig, folder: Path, trials: int = 1) -> Job:
    """A run as the pool takes it.

    Raises:
        SettingError: there is no training set of its task.
    """
    tsv = config.data_dir / f"{config.task}_train.tsv"
    if not tsv.is_file():
        raise SettingError(
            f"--data_dir: {tsv} does not exist; make it with python experiments/glue/glue_prepro.py "
            f"--root_dir <raw GLUE folder> --out {config.data_dir}, or leave {config.task} out of --tasks"
        )
    rows = _count_rows(tsv)
    used = config.train_size or math.ceil(rows * (1.0 - (config.holdout or 0.0)) * (config.train_fraction or 1.0))
    steps = config.epochs * math.ceil(used / config.window)
    return Job(config, folder, steps, cost=config.epochs * tsv.stat().st_size * used / max(rows, 1), trials=trials)


@functools.cache
def _count_rows(tsv: Path) -> int:
    with tsv.open("rb") as file:
        return sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(1 << 20), b""))


def is_done(job: Job) -> bool:
    """Whether there is nothing left to compute of a run."""
    result = RunDirectory(job.folder).read_result()
    return result is not None and result.done


def _prepare(jobs: Sequence[Job]) -> None:
    """Fetch the encoder and make the token caches once, before many workers want them."""
    distinct = {(job.config.task, job.config.init_checkpoint, job.config.max_seq_len): job.config for job in jobs}
    for config in distinct.values():
        open_datasets(config)


def _train_run() -> RunFunction:
    from mt_dnn.run import run  # brings torch, which help and a finished study do without

    return run


def _figures(table: Table, out: Path) -> list[Path]:
    from experiments.glue.figures import seed_strips  # matplotlib: a slow import, wanted only at the end

    return seed_strips(table, out / "strip")


if __name__ == "__main__":
    sys.exit(main())
