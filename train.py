"""Command line of one run; see ``python train.py --help``."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mt_dnn.config import RunConfig
    from mt_dnn.results import RunResult

KILLED = 128 + signal.SIGINT


def main(arguments: Sequence[str] | None = None) -> int:
    """Train as the command line says.

    Args:
        arguments: Command line without the program's name; default: this process's.

    Returns:
        Exit status: 0 done, 1 failed or left by another process of the run, 2 wrong setting or file, 75 stopped by a
        signal after a checkpoint, 130 stopped at once by Ctrl-C.
    """
    rank = os.environ.get("RANK", "0")  # of torchrun; the first process speaks for all
    level = logging.INFO if rank == "0" else logging.ERROR
    logging.basicConfig(level=level, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    try:
        from data_utils.command_line import status_of

        return status_of(lambda: _train(sys.argv[1:] if arguments is None else arguments, rank))
    except KeyboardInterrupt:
        if rank == "0":
            print(
                "stopped at once; the same command goes on from the last checkpoint, if there is one", file=sys.stderr
            )
        return KILLED


def _train(arguments: Sequence[str], rank: str) -> int:
    from data_utils.errors import SettingError, error_line
    from experiments.benchmark import DEFAULT
    from mt_dnn.config import run_dir
    from mt_dnn.config_parser import config_from_arguments
    from mt_dnn.interrupt import Interrupted, RankLost
    from mt_dnn.results import RunDirectory, RunLocked

    try:
        config = config_from_arguments(arguments, task_def=DEFAULT.task_def)
        before = RunDirectory(run_dir(config)).read_result()
        from mt_dnn.data_parallel import join
        from mt_dnn.progress import progress_bar
        from mt_dnn.run import run

        label = f"{config.task} {config.method} seed={config.seed}"
        with join(config.device) as ranks, progress_bar(label, shown=ranks.first) as report:
            result = run(config, report, ranks=ranks)
    except RunLocked as error:
        raise SettingError(str(error)) from None
    except (SettingError, OSError) as error:
        if rank == "0":
            raise
        raise SettingError(f"process {rank}: {error_line(error)}") from None
    except RankLost as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except Interrupted as stop:
        if rank == "0":
            print(stop, file=sys.stderr)
        return 75
    return _tell(config, result, ranks.first, again=before is not None and before.done)


def _tell(config: RunConfig, result: RunResult, first: bool, again: bool) -> int:
    """Print the scores and how the run ended; returns the exit status."""
    from mt_dnn.config import run_dir
    from mt_dnn.results import Status

    if first:
        for name, score in (("best", result.best), ("last", result.last)):
            if score is not None:
                print(f"{name} epoch {score.epoch}: {result.primary_metric} {score.score:z.2f}")
        notes = [note for note in (result.error, "done already: nothing was computed" if again else None) if note]
        print(f"{result.status}: {run_dir(config)}" + (f" ({'; '.join(notes)})" if notes else ""))
    return 1 if result.status is Status.FAILED else 0


if __name__ == "__main__":
    sys.exit(main())
