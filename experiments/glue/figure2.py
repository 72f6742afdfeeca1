r"""Figure 2 of the paper: the distribution of the fine-tuned encoder's sensitivities, method by method.

    python -m experiments.glue.figure2 --encoder bert-base-uncased --data_dir data/canonical_data --unequal_grids
    python -m experiments.glue.figure2 --encoder all-MiniLM-L6-v2 --methods vanilla,sage,pats --tasks cola,rte --seeds 3

Trains what is missing, as experiments.study does (started again, it goes on), with --set sensitivity_beta=0.75
--set save=none beneath your own --set, and writes into <results_dir>/<encoder>/ the study's table and, for each task,
pictures (PNG, PDF) with their numbers (CSV):
    <task>_distribution    s̄ over the paper's range [5e-8, 1e-5] and over all of it, mean and band over the seeds
    <task>_concentration   standard deviation, Gini coefficient and entropy, a dot per seed
    <task>_heat_map        mean s̄ of each layer and kind of tensor
    <task>_statistics      .md and .csv: these and more; in .md also each method minus its control
    <task>_differences     .csv: that, with Student's 95 % interval, where the paper says what PATS makes smaller
    strip, curves          every seed's score; learning curves
docs/figures.md defines s̄ and each statistic.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.study import arguments as study_arguments
from experiments.study.drawing.curves import learning_curves
from experiments.study.drawing.distribution import draw_concentration, draw_distribution
from experiments.study.drawing.heat_map import draw_heat_map
from experiments.study.drawing.plotting import save_data
from experiments.study.drawing.seed_strips import seed_strips
from experiments.study.drawing.sensitivities import (
    DEFAULTS,
    check_recorded,
    concentration_markdown,
    concentration_rows,
    concentrations,
    read_methods,
    statistics_markdown,
    statistics_rows,
)
from experiments.study.launch.stopping import study_status
from experiments.study.launch.worker import RunFunction
from experiments.study.plan import plan_jobs
from experiments.study.study import run_study
from experiments.study.table.cells import Table
from experiments.study.table.titles import task_title
from experiments.study.texts import write_texts

RUNS = Path("runs/figures")


def figure_parser(module: str, text: str) -> argparse.ArgumentParser:
    """The command line of the study with the defaults of the paper's Figures 2 and 3: CoLA, with and without PATS."""
    parser = study_arguments.build_parser(f"experiments.glue.{module}", text, tasks="cola")
    parser.set_defaults(methods="vanilla,pats", output_dir=RUNS, results_dir=Path("results") / module)
    return parser


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    return figure_parser("figure2", __doc__)


def main(arguments: Sequence[str] | None = None, run: RunFunction | None = None) -> int:
    """Command line; returns the exit status. The workers call ``run``, :func:`mt_dnn.run.run` by default."""
    chosen = build_parser().parse_args(arguments)
    chosen.overrides = [*DEFAULTS, *chosen.overrides]

    def work() -> int:
        check_recorded(plan_jobs(chosen))
        return run_study(chosen, run, lambda table, out: draw(table, chosen.output_dir, out))

    return study_status(work)


def draw(table: Table, runs: Path, out: Path) -> list[Path]:
    """Draw every figure of a table whose runs have recorded their sensitivities.

    Args:
        table: The table.
        runs: ``output_dir`` of its runs.
        out: Folder for the files.

    Returns:
        The files.
    """
    files = seed_strips(table, out / "strip") + learning_curves(table, runs, out / "curves")
    for encoder in table.encoders:
        for task in table.run_tasks:
            by_method = read_methods(table, encoder, task, runs)
            if not any(by_method.values()):
                print(f"{encoder}, {task}: no run has ended: no figure", file=sys.stderr)
                continue
            name = task if len(table.encoders) == 1 else f"{encoder}_{task}"
            title = f"{task_title(task)}, {encoder}"
            files += draw_distribution(by_method, title, out / f"{name}_distribution")
            files += draw_concentration(by_method, title, out / f"{name}_concentration")
            files += draw_heat_map(by_method, title, out / f"{name}_heat_map")
            files.append(save_data(out / f"{name}_statistics", statistics_rows(by_method)))
            shown = concentrations(by_method)
            files.append(save_data(out / f"{name}_differences", concentration_rows(shown)))
            text = statistics_markdown(by_method, title) + concentration_markdown(shown)
            files += write_texts(out, {f"{name}_statistics.md": text})
            print(text)
    return files


if __name__ == "__main__":
    sys.exit(main())
