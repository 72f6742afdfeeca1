r"""Many runs and their table: recipes x tasks x seeds, on all devices of this machine.

    python -m experiments.study --encoder bert-base-uncased --unequal_grids --devices 0,1,2,3
    python -m experiments.study --encoder all-MiniLM-L6-v2 --methods vanilla,pats --tasks cola,rte --seeds 2 \
        --set epochs=3 --data_dir data/canonical_data --devices cpu
    python -m experiments.study --recipes mine.yml --tasks cola --dry_run      list the runs, done and missing
    python -m experiments.study --encoder all-MiniLM-L6-v2 --methods vanilla,pats --tasks rte --search sobol \
        --trials 9                          choose settings from the recipes' grids; docs/search.md
    python -m experiments.study --encoder roberta-large --unequal_grids --launcher ray       on a Ray cluster

Started again, it computes only what is missing; stopped or killed, the same command goes on. Several studies may
share one runs folder at the same time: no run is done twice.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from experiments.study.arguments import build_parser

if TYPE_CHECKING:
    from experiments.study.launch.worker import RunFunction


def main(arguments: Sequence[str] | None = None, run: RunFunction | None = None) -> int:
    """Command line; returns the exit status. The workers call ``run``, :func:`mt_dnn.run.run` by default."""
    chosen = build_parser("experiments.study", __doc__).parse_args(arguments)
    # Slow imports, which help and mistakes in the arguments do without.
    from experiments.study.launch.stopping import study_status
    from experiments.study.study import run_study

    return study_status(lambda: run_study(chosen, run))


if __name__ == "__main__":
    sys.exit(main())
