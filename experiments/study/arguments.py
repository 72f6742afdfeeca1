"""The command lines of a study and of the commands that read its runs.

A mistake in them is told before anything is installed (run_pats.sh), so nothing is imported here but Python's library.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from data_utils.command_line import CommandParser
from experiments.benchmark import DEFAULT

LAUNCHERS = ("local", "ray")
SAMPLERS = ("grid", "sobol", "halton", "tpe")


def build_parser(
    module: str = "experiments.study", text: str = "", tasks: str | None = None
) -> argparse.ArgumentParser:
    """The command line.

    Args:
        module: The command's module.
        text: That module's text: a description, an empty line, examples.
        tasks: Default of ``--tasks``; None: every task of the recipes.
    """
    parser = CommandParser(
        f"python -m {module}",
        text,
        "\nExit status: 0 every run of the table is there, 1 some failed or are missing, 2 a setting "
        "or file is wrong, 75 stopped by\na signal, after checkpoints (start it again to go on), 130 killed by a "
        "second Ctrl-C, or by the first while no run is\ncomputed.",
    )
    what = parser.add_argument_group("what to run")
    encoder = "encoder or causal decoder: Hub name, local folder, all-MiniLM-L6-v2; finds recipes/<encoder>_<method>"
    what.add_argument("--encoder", help=encoder)
    what.add_argument("--methods", default="vanilla,noisytune,sage,pats", help="with --encoder; default: %(default)s")
    what.add_argument("--recipe_base", help="take this encoder's recipes for an --encoder that has none of its own")
    what.add_argument("--recipes", help="recipe names or files, instead of --encoder and --methods")
    every = "every task of the recipes, or of --task_def where that defines none of theirs"
    what.add_argument("--tasks", default=tasks, help=f"default: {tasks or every}")
    add_seed_arguments(what)
    what.add_argument(
        "--controls", action="store_true",
        help="add what each method is to be compared with: plain fine-tuning with the same changes of protocol",
    )  # fmt: skip
    what.add_argument(
        "--unequal_grids", action="store_true",
        help="compare methods although their settings were chosen from grids of different sizes, or --search with "
        "unequal numbers of trials; the tables show them",
    )  # fmt: skip
    what.add_argument(
        "--holdout", type=float, metavar="SHARE",
        help="hold this share of the training set out, the same rows in every run, and choose epochs (and with "
        "--search settings) by the score on it, so that the dev score was not selected on",
    )  # fmt: skip
    what.add_argument(
        "--evaluate_on", action="append", default=[], metavar="TASK:SET,...",
        help="score the best epoch of each finished run of a task on other sets too, canonical files <set>_dev.tsv in "
        "--data_dir with the task's labels, such as mnli:anlir1,advglue_mnli; may be repeated",
    )  # fmt: skip
    _add_search_arguments(parser)
    add_place_arguments(parser, "the encoders' names, of a search with -search behind them")
    return parser


def add_seed_arguments(parser: argparse._ActionsContainer) -> None:
    """Add ``--seeds``, ``--set`` and ``--dry_run``."""
    parser.add_argument(
        "--seeds", default="5",
        help="5 is the seeds 1 to 5; 3,7,11 those three; 7, (with the comma) the one seed 7; default: %(default)s",
    )  # fmt: skip
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides",
        help="override a setting of every recipe, such as epochs=3, pats.noise_scale=8e-3 or, for one task, "
        "cola.epochs=5; may be repeated",
    )  # fmt: skip
    parser.add_argument("--dry_run", action="store_true", help="list the runs, done and missing, and stop")


def add_place_arguments(parser: argparse.ArgumentParser, name: str) -> None:
    """Add the flags for the places of data, runs and results, and for the launcher.

    Args:
        parser: The command's.
        name: Default of ``--name``, in words.
    """
    where = parser.add_argument_group("where")
    where.add_argument("--data_dir", type=Path, default=Path("data/canonical_data"), help="default: %(default)s")
    where.add_argument("--task_def", type=Path, default=DEFAULT.task_def, help="task definitions; default: GLUE's")
    where.add_argument("--output_dir", type=Path, default=Path("runs"), help="folder of the runs; default: %(default)s")
    where.add_argument("--results_dir", type=Path, default=Path("results"), help="default: %(default)s")
    where.add_argument("--name", help=f"folder in --results_dir; default: {name}")
    _add_launcher_arguments(parser)


def _add_search_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of a search."""
    group = parser.add_argument_group("search", "instead of a table, choose settings from the recipes' grids")
    group.add_argument(
        "--search", choices=SAMPLERS,
        help="every combination (or with --trials a random part of them), a quasi-random sequence over the grid, or "
        "optuna's TPE (requirements-search.txt)",
    )  # fmt: skip
    group.add_argument("--trials", type=int, help="settings to try per encoder, method and task; grid: default all")
    group.add_argument(
        "--search_seeds", default="101,", metavar="SEEDS",
        help="seeds of every trial, whose scores are averaged; none of --seeds, which the table of the chosen settings "
        "reports; default: %(default)s (the one seed 101)",
    )  # fmt: skip
    group.add_argument(
        "--sampler_seed", type=int, default=0, help="another one gives other trials; default: %(default)s"
    )
    group.add_argument(
        "--tpe_round", type=int, default=4, metavar="N",
        help="trials that TPE asks for at a time: more keep more workers busy, fewer learn more from those before; "
        "default: %(default)s",
    )  # fmt: skip
    group.add_argument(
        "--prune_after", type=int, metavar="EPOCHS",
        help="median pruning: after so many epochs give up a trial that is below the median of the others at the same "
        "epoch; the tables say so; default: off",
    )  # fmt: skip


def _add_launcher_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags for devices, workers and launcher."""
    how = parser.add_argument_group("how")
    how.add_argument(
        "--devices", default="auto",
        help="0,1,2,3 (CUDA devices), cpu, or auto; with --launcher ray, which picks the devices, cpu or auto; "
        "default: %(default)s",
    )  # fmt: skip
    how.add_argument(
        "--workers_per_device", type=int,
        help="runs at a time on each device; default: 1 per CUDA device (python -m benchmarks.sharing measures which "
        "number is best on it); on the CPU one per core, which share its cores evenly (mind the memory: a worker holds "
        "a model, its gradients and optimizer state)",
    )  # fmt: skip
    how.add_argument(
        "--retries", type=int,
        help="times that a run is tried again, from its last checkpoint, after its worker or node died; "
        "default: 1, with --launcher ray 3",
    )  # fmt: skip
    how.add_argument(
        "--launcher", choices=LAUNCHERS, default="local",
        help="local: processes of this machine; ray: the nodes of a Ray cluster (pip install -r requirements-ray.txt; "
        "docs/cluster.md); default: %(default)s",
    )  # fmt: skip
    ray = parser.add_argument_group("with --launcher ray")
    ray.add_argument("--address", help="head of the cluster: host:port, or auto for this machine's; default: auto")
    ray.add_argument(
        "--gpus_per_run", type=float,
        help="share of a GPU in (0, 1]: 0.5 puts two runs on each; default: 1 if the cluster has a GPU now, else the "
        "runs compute on CPUs. Give it if GPU nodes are yet to join",
    )  # fmt: skip
    ray.add_argument("--cpus_per_run", type=int, help="cores of each run, which are its threads; default: 1")


def add_run_arguments(parser: argparse.ArgumentParser, study: str) -> None:
    """Add ``runs``, ``--study`` and ``--run_id``.

    Args:
        parser: The command's.
        study: What the command does with a study's cells.
    """
    parser.add_argument("runs", type=Path, help="output_dir of the runs")
    parser.add_argument("--study", type=Path, help=f"study.json: {study}")
    parser.add_argument("--run_id", action="append", default=[], help="run id to take where a cell has several")
