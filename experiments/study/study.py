"""A study: its missing runs are computed, then its table and figures are written."""

from __future__ import annotations

import argparse
import functools
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from data_utils.errors import SettingError
from data_utils.json_file import write_json
from experiments.study.comparison.ensembles import write_ensembles
from experiments.study.elsewhere import find_sets, score_elsewhere
from experiments.study.launch.display import StudyDisplay
from experiments.study.launch.job import Job
from experiments.study.launch.launcher import check_machine, launch, retries
from experiments.study.launch.pool import Pool, Report
from experiments.study.launch.stopping import KILLED, STOPPED
from experiments.study.launch.worker import RunFunction
from experiments.study.plan import cells_of, chosen_overrides, chosen_recipes, describe, plan_jobs, study_name
from experiments.study.search.searcher import run_search
from experiments.study.table.cells import Table
from experiments.study.table.gathering import gather
from experiments.study.table.markdown import markdown
from experiments.study.table.paper import load_paper
from experiments.study.table.wanted import Wanted
from experiments.study.tables import write_tables
from mt_dnn.data import open_all
from mt_dnn.identity import finished_result
from mt_dnn.schedule import learns_nothing


def run_study(
    chosen: argparse.Namespace, run: RunFunction | None, figures: Callable[[Table, Path], list[Path]] | None = None
) -> int:
    """Compute the missing runs of a study, then write its table and figures.

    Args:
        chosen: The command line.
        run: Computes a run; None: :func:`mt_dnn.run.run`.
        figures: Draws the table's figures into a folder and returns their files; None: the seed strips.
    """
    jobs = plan_jobs(chosen)
    if chosen.search is not None:
        if chosen.evaluate_on:
            raise SettingError("--evaluate_on is for a table; drop it or --search")
        out = chosen.results_dir / (study_name(chosen, jobs) + ("" if chosen.name else "-search"))
        compute_trials = functools.partial(_compute, chosen, run)
        return run_search(chosen_recipes(chosen), jobs, chosen_overrides(chosen), out, chosen, compute_trials)
    sets = find_sets(jobs, chosen.evaluate_on)
    if chosen.dry_run:
        return list_jobs(jobs)
    out = chosen.results_dir / study_name(chosen, jobs)
    study_json = out / "study.json"
    _make_folder("--results_dir", out)
    write_json(study_json, describe(chosen, cells=cells_of(jobs)))
    report, stopped = compute(jobs, chosen, run)
    if stopped:
        return stopped
    score_elsewhere(jobs, sets, "cpu" if chosen.devices == "cpu" else "auto")
    table = gather(chosen.output_dir, Wanted.read(study_json))
    files = write_tables(table, out) + write_ensembles(table, chosen.output_dir, out)
    files += (figures or _figures)(table, out)
    print(markdown(table, load_paper(table.benchmark)))
    print("\n".join(map(str, files)))
    print(f"one page with curves and tests: {_report_command(chosen.output_dir, study_json)}")
    list_failures(report)
    return 0 if table.complete else 1


def _report_command(runs: Path, study_json: Path) -> str:
    """The command that makes a page of a study, by this interpreter: its environment need not be the active one."""
    page = study_json.with_name("report.html")
    module = ["-m", "experiments.study.report"]
    return shlex.join([sys.executable, *module, str(runs), "--study", str(study_json), "--out", str(page)])


def list_jobs(jobs: Sequence[Job]) -> int:
    """Print the runs, done and missing; returns 0."""
    todo = _missing(jobs)
    folders = {job.folder for job in todo}
    for job in jobs:
        print(f"{'missing' if job.folder in folders else 'done   '}  {job.label}  {job.folder}")
    steps = sum(job.steps for job in todo)
    print(f"{len(jobs)} runs: {len(jobs) - len(todo)} done, {len(todo)} missing, with {steps} steps")
    return 0


def compute(jobs: Sequence[Job], chosen: argparse.Namespace, run: RunFunction | None) -> tuple[Report, int]:
    """Compute the runs that are not done.

    Returns:
        Their outcome, and 0 or the exit status after a signal.

    Raises:
        SettingError: a run that is done was made of other data, another task definition or encoder.
    """
    todo = _missing(jobs)
    if not todo:
        print(f"all {len(jobs)} runs are already done", file=sys.stderr)
        return Report(done=0), 0
    report, stopped = _compute(chosen, run, todo, len(jobs))
    if not stopped:
        _missing(jobs)  # refuses runs that another study has made meanwhile of other data, or data that were changed
    return report, stopped


def _missing(jobs: Sequence[Job]) -> list[Job]:
    """The runs that are still to do.

    Raises:
        SettingError: a run is of other data, another task definition or encoder, or a file of it is damaged.
    """
    return [job for job in jobs if finished_result(job.config) is None]


def _make_folder(flag: str, folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingError(
            f"{flag}: cannot make {folder} ({error.strerror}); choose a folder that can be written"
        ) from None


def _compute(
    chosen: argparse.Namespace,
    run: RunFunction | None,
    todo: Sequence[Job],
    total: int,
    wrap: Callable[[RunFunction], RunFunction] | None = None,
) -> tuple[Report, int]:
    """Compute runs, of so many altogether; returns the report, and the exit status of a stop by a signal or 0."""
    check_machine(chosen, todo)
    _make_folder("--output_dir", chosen.output_dir)
    _warn_of_idle_runs(todo)
    run = run or _train_run()
    with launch(chosen, wrap(run) if wrap is not None else run, todo) as crew:
        done = f", {total - len(todo)} are already done" if len(todo) < total else ""
        print(f"{len(todo)} of {total} runs to do, {crew.summary}{done}; preparing data and encoders", file=sys.stderr)
        _prepare(todo)
        with StudyDisplay(todo) as display:
            pool = Pool(crew, display, retries(chosen))
            report = pool.compute(todo)
    if not report.stopped:
        return report, 0
    print("stopped; the same command goes on", file=sys.stderr)
    return report, KILLED if pool.killed else STOPPED


def _warn_of_idle_runs(jobs: Sequence[Job]) -> None:
    idle = [job for job in jobs if learns_nothing(job.steps, job.config.warmup, job.config.schedule)]
    if idle:
        print(
            f"warning: {len(idle)} of {len(jobs)} runs learn nothing: their only step stands at the start of the "
            f"warm-up, where the learning rate is 0 (first: {idle[0].label}); give more epochs or --set warmup=0",
            file=sys.stderr,
        )


def list_failures(report: Report) -> None:
    """Name the runs that failed, with the reason, on standard error."""
    for job, error in report.failures:
        print(f"failed: {job.label}: {error} ({job.folder})", file=sys.stderr)


def _prepare(jobs: Sequence[Job]) -> None:
    """Fetch the encoder and make the token caches once, before many workers want them."""
    distinct = {(job.config.task, job.config.init_checkpoint, job.config.max_seq_len): job.config for job in jobs}
    for config in distinct.values():
        open_all(config)


def _train_run() -> RunFunction:
    from mt_dnn.run import run  # brings torch, which help and a finished study do without

    return run


def _figures(table: Table, out: Path) -> list[Path]:
    from experiments.study.drawing.seed_strips import seed_strips  # matplotlib: a slow import, wanted only at the end

    return seed_strips(table, out / "strip")
