"""Command line of one run; see ``python train.py --help``."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from data_utils.command_line import print_anything, status_of

if TYPE_CHECKING:
    from mt_dnn.config import RunConfig
    from mt_dnn.results import RunResult

KILLED = 128 + signal.SIGINT


def main(arguments: Sequence[str] | None = None) -> int:
    """Train one run.

    Args:
        arguments: Command line without the program's name; default: this process's.

    Returns:
        Exit status: 0 done, 1 failed or left by another process of the run, 2 wrong setting or file, 75 stopped by a
        signal after a checkpoint, 130 stopped at once by Ctrl-C.
    """
    rank = os.environ.get("RANK", "0")  # of torchrun; the first process speaks for all
    level = logging.INFO if rank == "0" else logging.ERROR
    logging.basicConfig(level=level, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    print_anything()
    try:
        from experiments.benchmark import DEFAULT
        from mt_dnn.config_parser import config_from_arguments

        config = config_from_arguments(sys.argv[1:] if arguments is None else arguments, task_def=DEFAULT.task_def)
        from mt_dnn.data_parallel import join  # these import torch, which a wrong command line need not wait for
        from mt_dnn.progress import progress_bar
        from mt_dnn.run import DoneRun, open_run

        label = f"{config.task} {config.method} seed={config.seed}"
        with (
            join(config.device) as ranks,
            progress_bar(label, shown=ranks.first) as report,
            open_run(config, report, ranks=ranks) as trainer,
        ):
            trainer.fit()
        again = isinstance(trainer, DoneRun)
        return status_of(partial(_report_result, config, trainer.result, ranks.first, again))
    except KeyboardInterrupt:
        if rank == "0":
            print(
                "stopped at once; the same command goes on from the last checkpoint, if there is one", file=sys.stderr
            )
        return KILLED
    except Exception as error:
        return status_of(partial(_report_stop, error, rank))


def _report_stop(error: Exception, rank: str) -> int:
    """Report a run's early end in one line; returns the exit status, or raises the error to print."""
    from data_utils.errors import SettingError, error_line
    from mt_dnn.interrupt import Interrupted, RankLost
    from mt_dnn.run_directory import RunLocked

    if isinstance(error, RankLost):
        print(f"error: {error}", file=sys.stderr)
        return 1
    if isinstance(error, Interrupted):
        if rank == "0":
            print(error, file=sys.stderr)
        return 75
    if isinstance(error, RunLocked):
        raise SettingError(str(error))
    if rank != "0" and isinstance(error, SettingError | OSError):
        raise SettingError(f"process {rank}: {error_line(error)}")
    raise error


def _report_result(config: RunConfig, result: RunResult, first: bool, again: bool) -> int:
    """Print the scores and how the run ended; returns the exit status."""
    from mt_dnn.results import Status
    from mt_dnn.run_id import run_dir

    if first:
        for name, score in (("best", result.best), ("last", result.last)):
            if score is not None:
                print(f"{name} epoch {score.epoch}: {result.primary_metric} {score.score:z.2f}")
        for task, scores in result.tasks.items():
            found = [(name, s) for name, s in (("best", scores.best), ("last", scores.last)) if s is not None]
            told = ", ".join(f"{name} epoch {s.epoch} {scores.primary_metric} {s.score:z.2f}" for name, s in found)
            print(f"{task}: {told or 'no epoch was scored'}")
        notes = [note for note in (result.error, "done already: nothing was computed" if again else None) if note]
        print(f"{result.status}: {run_dir(config)}" + (f" ({'; '.join(notes)})" if notes else ""))
    return 1 if result.status is Status.FAILED else 0


if __name__ == "__main__":
    sys.exit(main())
