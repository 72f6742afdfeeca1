r"""Figure 3 of the paper: score and standard deviation of s̄ against the share of the training data.

    python -m experiments.glue.figure3 --encoder bert-base-uncased --data_dir data/canonical_data --unequal_grids
    python -m experiments.glue.figure3 --encoder all-MiniLM-L6-v2 --methods vanilla,sage,pats --shares 10,50,100

Trains what is missing, as experiments.study does (started again, it goes on), with --set sensitivity_beta=0.75
--set save=none beneath your own --set, and writes into <results_dir>/<encoder>/:
    <task>_data_share        the figure (PNG, PDF), mean and band over the seeds; its numbers (CSV)
    <task>_data_share_runs   .csv: a line per run
    <task>_data_share_differences   .csv: every method minus its control at each share, with its interval
    figure3.json             the runs of every share
A smaller share is a subset of a larger one of the same seed. The whole set is Figure 2's run. docs/figures.md has more.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from data_utils.errors import SettingError
from data_utils.json_file import write_json
from experiments.glue.figure2 import figure_parser
from experiments.study.drawing.data_share import SharePoint, draw_data_share
from experiments.study.drawing.sensitivities import DEFAULTS, check_recorded, read_cell
from experiments.study.launch.job import Job
from experiments.study.launch.stopping import study_status
from experiments.study.launch.worker import RunFunction
from experiments.study.plan import cells_of, describe, plan_jobs, study_name
from experiments.study.study import compute, list_failures, list_jobs
from experiments.study.table.cells import SELECTIONS, Selection, Table, chosen_held_out
from experiments.study.table.contents import refuse_mixture
from experiments.study.table.gathering import finished_runs, gather
from experiments.study.table.wanted import Wanted


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = figure_parser("figure3", __doc__)
    parser.add_argument(
        "--shares", default="10,20,30,40,50,60,70,80,90,100", help="percent of the training set; default: %(default)s"
    )
    parser.add_argument(
        "--selection", choices=SELECTIONS, default="best", help="score of the best dev epoch (the paper's) or of the "
        "last; the CSV has both; default: %(default)s",
    )  # fmt: skip
    return parser


def main(arguments: Sequence[str] | None = None, run: RunFunction | None = None) -> int:
    """Command line; returns the exit status. The workers call ``run``, :func:`mt_dnn.run.run` by default."""
    chosen = build_parser().parse_args(arguments)
    return study_status(lambda: _figure(chosen, run))


def _figure(chosen: argparse.Namespace, run: RunFunction | None) -> int:
    jobs_of = {share: plan_share(chosen, share) for share in parse_shares(chosen.shares)}
    jobs = [job for some in jobs_of.values() for job in some]
    check_recorded(jobs)
    if chosen.dry_run:
        return list_jobs(jobs)
    out = chosen.results_dir / study_name(chosen, jobs)
    out.mkdir(parents=True, exist_ok=True)
    cells = {share: cells_of(some) for share, some in jobs_of.items()}
    write_json(out / "figure3.json", describe(chosen, shares=cells))
    report, stopped = compute(jobs, chosen, run)
    if stopped:
        return stopped
    tables = {share: gather(chosen.output_dir, Wanted.of(some)) for share, some in cells.items()}
    every = [cell for table in tables.values() for cell in table.cells.values()]
    refuse_mixture(run for cell in every for run in finished_runs(cell, chosen.output_dir))
    print("\n".join(map(str, draw(tables, chosen.output_dir, out, chosen.selection))))
    list_failures(report)
    return 0 if all(table.complete for table in tables.values()) else 1


def parse_shares(text: str) -> list[float]:
    """``"10,50,100"`` -> percents, ascending.

    Raises:
        SettingError: something that is no number in (0, 100].
    """
    shares = []
    for part in filter(None, map(str.strip, text.split(","))):
        try:
            shares.append(float(part))
        except ValueError:
            shares.append(math.nan)
        if not 0.0 < shares[-1] <= 100.0:
            raise SettingError(f"--shares: {part!r} is no percentage in (0, 100]; give some, such as 10,50,100")
    if not shares:
        raise SettingError(f"--shares {text!r}: give percentages of the training set, such as 10,50,100")
    return sorted(set(shares))


def plan_share(chosen: argparse.Namespace, share: float) -> list[Job]:
    """The runs on one share of the training set; on all of it they are those of a plain study.

    Raises:
        SettingError: as :func:`experiments.study.plan.plan_jobs`, or the size of the training set is set otherwise.
    """
    for pair in chosen.overrides:
        key = pair.partition("=")[0].rpartition(".")[2]
        if key in ("train_fraction", "train_size"):
            raise SettingError(
                f"--set {pair}: the figure varies the size of the training set; give --shares in percent"
            )
    size = [f"train_fraction={share / 100.0!r}"] if share < 100.0 else []
    return plan_jobs(argparse.Namespace(**{**vars(chosen), "overrides": [*DEFAULTS, *chosen.overrides, *size]}))


def draw(tables: Mapping[float, Table], runs: Path, out: Path, selection: Selection) -> list[Path]:
    """Draw the figure of every encoder and task.

    Args:
        tables: Share in percent -> its table.
        runs: ``output_dir`` of the runs.
        out: Folder for the files.
        selection: ``best`` or ``last``.

    Returns:
        The files.
    """
    files: list[Path] = []
    whole = next(iter(tables.values()))
    for encoder in whole.encoders:
        for task in whole.run_tasks:
            points = share_points(tables, encoder, task, runs)
            if not points:
                print(f"{encoder}, {task}: no run has ended: no figure", file=sys.stderr)
                continue
            metric = next((name for table in tables.values() if (name := table.metric(task))), "")
            name = task if len(whole.encoders) == 1 else f"{encoder}_{task}"
            cells = [cell for t in tables.values() for key, cell in t.cells.items() if key[::2] == (encoder, task)]
            files += draw_data_share(
                points, whole.methods, (encoder, task, metric), selection, out / f"{name}_data_share",
                chosen_held_out(cells),
            )  # fmt: skip
    return files


def share_points(tables: Mapping[float, Table], encoder: str, task: str, runs: Path) -> list[SharePoint]:
    """Every run of one encoder and task that counts, by share, method and seed."""
    points = []
    for share, table in tables.items():
        for method in table.methods:
            cell = table.cell(encoder, method, task)
            if cell is None:
                continue
            recorded = read_cell(cell, runs)
            scores = {selection: cell.scores(selection) for selection in SELECTIONS}
            for result in cell.results:
                if result.seed not in scores["best"]:
                    continue
                s = recorded.get(result.seed)
                numbers = (s.std, s.std_in_range, s.gini, s.entropy) if s is not None else (math.nan,) * 4
                best, last = (scores[selection][result.seed] for selection in SELECTIONS)
                points.append(SharePoint(share, method, result.seed, result.train_examples, best, last, *numbers))
    return points


if __name__ == "__main__":
    sys.exit(main())
