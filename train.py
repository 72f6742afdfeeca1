"""Command line of one run; see ``python train.py --help``."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Train as the command line says.

    Args:
        arguments: Command line without the program's name; default: this process's.

    Returns:
        Exit status: 0 done, 1 failed or left by another process of the run, 2 wrong setting or file, 75 stopped by a
        signal after a checkpoint.
    """
    from data_utils.errors import SettingError
    from mt_dnn.config import run_dir
    from mt_dnn.config_parser import config_from_arguments
    from mt_dnn.interrupt import Interrupted, RankLost
    from mt_dnn.results import RunLocked, Status

    rank = os.environ.get("RANK", "0")  # of torchrun; the first process speaks for all
    level = logging.INFO if rank == "0" else logging.ERROR
    logging.basicConfig(level=level, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    try:
        config = config_from_arguments(sys.argv[1:] if arguments is None else arguments)
        from mt_dnn.data_parallel import join
        from mt_dnn.progress import progress_bar
        from mt_dnn.run import run

        label = f"{config.task} {config.method} seed={config.seed}"
        with join(config.device) as ranks, progress_bar(label, shown=ranks.first) as report:
            result = run(config, report, ranks=ranks)
    except (SettingError, RunLocked, OSError, RankLost) as error:
        print(f"error: {error}" if rank == "0" else f"error in process {rank}: {error}", file=sys.stderr)
        return 1 if isinstance(error, RankLost) else 2
    except Interrupted as stop:
        if rank == "0":
            print(stop, file=sys.stderr)
        return 75
    if not ranks.first:
        return 1 if result.status is Status.FAILED else 0
    for name, score in (("best", result.best), ("last", result.last)):
        if score is not None:
            print(f"{name} epoch {score.epoch}: {result.primary_metric} {score.score:.2f}")
    print(f"{result.status}: {run_dir(config)}" + (f" ({result.error})" if result.error else ""))
    return 1 if result.status is Status.FAILED else 0


if __name__ == "__main__":
    sys.exit(main())
